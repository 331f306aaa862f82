"""The folder of a trained network: its configuration as timm writes it, and its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import is_model, split_model_name_tag
from torch import nn

from densefeat.errors import UsageError, WeightsError
from densefeat.nets import check_fit, file_sha256, load_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OWN = "densefeat"  # the key of what timm's configuration has no place for
_BACKBONE = "backbone."  # what the keys of a network's weights begin with where its head is not timm's
_MAX_CONFIG = 2**26  # bytes
_MAX_CLASSES, _MAX_WIDTH, _MAX_PIXELS = 2**20, 2**16, 2**13
_FOREIGN = {
    "pretrained",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "scriptable",
}


@dataclass(frozen=True)
class RunConfig:
    """``task``: single or multi. ``head``: linear (timm's own classifier), or a kind of ours, ``head_width`` wide."""

    path: Path
    architecture: str
    arguments: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    num_classes: int
    classes: list[str] | None
    task: str
    head: str
    head_width: int

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS


def names_folder(model: str) -> bool:
    """Whether a folder is meant, and no network of that name."""
    return bool(model) and Path(model).is_dir() and not is_model(split_model_name_tag(model)[0])


def read_run(folder: str | Path) -> RunConfig:
    """The configuration in a run's folder. UsageError where there is none, WeightsError where it cannot be understood."""
    path = Path(folder)
    file = path / CONFIG
    if not file.is_file():
        told = "not a run, or one that was not evaluated yet (a probe is for densefeat predict)"
        raise UsageError(f"model {str(folder)!r}: this folder holds no {CONFIG}: {told}")
    if file.stat().st_size > _MAX_CONFIG:
        raise WeightsError(f"{str(file)!r}: {file.stat().st_size:,} bytes are no configuration")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{str(file)!r}: not JSON: {error}") from error
    try:
        own, names = config.get(OWN) or {}, config.get("label_names")
        run = RunConfig(
            path,
            str(config["architecture"]),
            dict(config.get("model_args") or {}),
            dict(config["pretrained_cfg"]),
            int(own.get("num_classes", config["num_classes"])),
            list(map(str, names)) if isinstance(names, list) else None,
            str(own.get("task", "single")),
            str(own.get("head", "linear")),
            int(own.get("head_width", 1)),
        )
        _check_bounds(run)
        return run
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{str(file)!r}: no network can be made of it: {error}") from error


def _check_bounds(run: RunConfig) -> None:
    """Raise ValueError for what would fetch or read other files, or make memory that no weights fill."""
    if not is_model(run.architecture):
        raise ValueError(f"Unknown model {run.architecture!r}")
    if others := _FOREIGN & run.arguments.keys():
        raise ValueError(f"model_args has {min(others)!r}")
    size = run.pretrained_cfg.get("input_size") or (3, 1, 1)
    if not 0 <= run.num_classes <= _MAX_CLASSES or not 0 < run.head_width <= _MAX_WIDTH or max(map(int, size)) > _MAX_PIXELS:
        raise ValueError(f"num_classes {run.num_classes}, head_width {run.head_width}, input_size {list(size)}")


def make_network(run: RunConfig, num_classes: int) -> nn.Module:
    """timm's network of a run, with that many classes and fresh weights; WeightsError where it cannot be made."""
    arguments = run.arguments | {"num_classes": num_classes}  # which may be among them
    try:
        return timm.create_model(run.architecture, pretrained_cfg=run.pretrained_cfg, **arguments)
    except Exception as error:  # whatever another program's file makes timm say
        raise WeightsError(f"{str(run.path / CONFIG)!r}: no network can be made of it: {error}") from error


def load_backbone(run: RunConfig) -> tuple[nn.Module, str]:
    """A run's network up to its head (a linear one stays), in eval mode, and the SHA-256 of the file of its weights."""
    if run.head == "linear":
        model = make_network(run, run.num_classes)
        load_whole(model, run.weights)
    else:
        model = make_network(run, 0)
        _load_part(model, run.weights, _BACKBONE)
    return model.eval(), file_sha256(run.weights)


def load_whole(network: nn.Module, weights: str | Path) -> None:
    """The classifier, too: WeightsError where it is for another number of classes, and the network would keep a random one."""
    dropped = load_weights(network, weights).dropped
    if dropped:
        classes = getattr(network, "num_classes", "other")
        raise WeightsError(f"weights {weights}: {', '.join(dropped)}: not for {classes} classes, as the network's")


def _load_part(network: nn.Module, weights: Path, prefix: str) -> None:
    """The tensors of a safetensors file whose names begin with ``prefix``; WeightsError where they do not fit."""
    tensors = read_tensors(weights)
    part = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    check_fit(part, network, weights)
    network.load_state_dict(part, strict=False)  # checked above; only num_batches_tracked may be missing


def read_tensors(weights: Path) -> dict[str, torch.Tensor]:
    if not weights.is_file():
        raise WeightsError(f"weights {weights}: no such file")
    try:
        return safetensors.torch.load_file(weights)
    except Exception as error:  # of safetensors, in many types
        raise WeightsError(f"weights {weights}: damaged, or no safetensors file ({str(error).splitlines()[0]})") from error
