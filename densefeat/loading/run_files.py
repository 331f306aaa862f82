"""The files of a trained run: configuration as timm writes it, weights, and what the run recorded about itself."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.models import is_model, split_model_name_tag
from timm.models._hub import save_config_for_hf
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from densefeat.base import add_checksum, check_checksum, describe_error, parse_json, read_yaml, shorten_text
from densefeat.errors import UsageError, WeightsError
from densefeat.heads import KINDS, HeadedNet
from densefeat.images import MAX_SIDE, PixelRule, complete_record

CONFIG, WEIGHTS, RESULTS, RECIPE = "config.json", "model.safetensors", "results.json", "recipe.yaml"
OWN = "densefeat"  # the key in CONFIG for what timm's configuration has no place for
_MAX_CONFIG = 2**26  # bytes
_MAX_CLASSES, _MAX_WIDTH = 2**20, 2**16
_MAX_NUMBER = 2**16  # in the arguments of a model, and their sum in a list, such as the layers of its blocks
_FREE_PARAMETERS = 2**28  # that may be made for a weights file of any size: 1 GiB
_TENSOR_BYTES = 32  # fewer than an entry for a tensor in a weights file has
# Arguments of timm's models that would read other files or fetch something.
_FORBIDDEN_ARGUMENTS = {
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
    """The configuration of a trained run.

    ``task``: single or multi. ``head``: linear (timm's own classifier), or one of :data:`densefeat.heads.KINDS` with
    ``head_width`` channels. ``pixels``: what became of the images' samples.
    """

    path: Path
    architecture: str
    arguments: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    num_classes: int
    classes: list[str] | None
    task: str
    head: str
    head_width: int
    pixels: PixelRule

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS


def is_run_folder(model: str) -> bool:
    """Check whether ``model`` is a folder rather than the name of a network."""
    return bool(model) and Path(model).is_dir() and not is_model(split_model_name_tag(model)[0])


def read_run(folder: str | Path) -> RunConfig:
    """Read the configuration in a run's folder. UsageError where there is none, WeightsError where it is invalid."""
    path = Path(folder)
    file = path / CONFIG
    if not file.is_file():
        hint = "not a run, or one that was not evaluated yet (a probe is for densefeat predict and export)"
        raise UsageError(f"model {str(folder)!r}: this folder holds no {CONFIG}: {hint}")
    if file.stat().st_size > _MAX_CONFIG:
        raise WeightsError(f"{str(file)!r}: {file.stat().st_size:,} bytes are too many for a configuration")
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{str(file)!r}: not JSON: {error}") from error
    check_checksum(config, f"configuration {str(file)!r}")
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
            PixelRule.from_json(_find_rule(own)),
        )
        _check_bounds(run)
        return run
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WeightsError(f"{str(file)!r}: no network can be made of it: {error}") from error


def _find_rule(own: dict[str, Any]) -> Any:
    """Find the pixel rule of a run, or of an exported folder, which has all of the preprocessing."""
    record = own if "pixels" in own else own.get("preprocessing") or {}
    return complete_record({name: value for name, value in record.items() if name == "pixels"})["pixels"]


def _check_bounds(run: RunConfig) -> None:
    """Raise ValueError for a configuration that would fetch or read other files, or allocate memory that no weights fill."""
    if not is_model(run.architecture):
        raise ValueError(f"Unknown model {run.architecture!r}")
    if forbidden := _FORBIDDEN_ARGUMENTS & run.arguments.keys():
        raise ValueError(f"model_args has {min(forbidden)!r}")
    for name, value in run.arguments.items():
        if _sum_numbers(value) > _MAX_NUMBER:
            raise ValueError(f"model_args has {name} {shorten_text(repr(value))}")
    size, crop_pct = run.pretrained_cfg.get("input_size") or (3, 1, 1), float(run.pretrained_cfg.get("crop_pct") or 1)
    side = max(map(int, size)) / crop_pct if crop_pct > 0 else math.inf  # to which images are resized
    if not 0 <= run.num_classes <= _MAX_CLASSES or not 0 < run.head_width <= _MAX_WIDTH or side > MAX_SIDE:
        raise ValueError(
            f"num_classes {run.num_classes}, head_width {run.head_width}, input_size {list(size)}, crop_pct {crop_pct}"
        )


def _sum_numbers(value: Any) -> float:
    if isinstance(value, list | dict):
        return sum(map(_sum_numbers, value.values() if isinstance(value, dict) else value))
    return abs(value) if isinstance(value, int | float) else 0


@contextmanager
def _bound_network(run: RunConfig) -> Iterator[None]:
    """Raise WeightsError where a network cannot be made, or as soon as it has more parameters than the weights can fill."""
    size = run.weights.stat().st_size if run.weights.is_file() else 0
    left, thread = max(size, _FREE_PARAMETERS), threading.get_ident()

    def count(_: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if parameter is not None and threading.get_ident() == thread:
            left -= parameter.numel() + _TENSOR_BYTES
        if left < 0:
            raise WeightsError(f"{str(run.path / CONFIG)!r}: its network is larger than its weights, at {name!r}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # a file of another program can make timm and torch raise anything
        raise WeightsError(f"{str(run.path / CONFIG)!r}: no network can be made of it: {describe_error(error)}") from error
    finally:
        hook.remove()


def write_config(path: Path, model: nn.Module, entries: dict[str, Any], **options: Any) -> None:
    """Write a network's configuration as timm does, with entries of ours and a checksum. ``options``: timm's."""
    save_config_for_hf(model, str(path), entries, **options)
    config = add_checksum(parse_json(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def make_network(run: RunConfig) -> nn.Module:
    """Make a run's network with fresh weights, head included: a :class:`HeadedNet` where the head is not timm's own."""
    if run.head == "linear":
        return make_backbone(run, run.num_classes)
    if run.head not in KINDS:
        raise WeightsError(f"run {str(run.path)!r}: head {run.head!r} is none of {', '.join(KINDS)}: update densefeat")
    with _bound_network(run):
        return HeadedNet(make_backbone(run, 0), run.head, run.head_width, run.num_classes)


def make_backbone(run: RunConfig, num_classes: int) -> nn.Module:
    """Make timm's network of a run with fresh weights. WeightsError where it cannot be made."""
    arguments = run.arguments | {"num_classes": num_classes}  # the arguments may contain num_classes
    with _bound_network(run):
        return timm.create_model(run.architecture, pretrained_cfg=run.pretrained_cfg, **arguments)


def read_results(folder: Path) -> dict[str, Any]:
    """Read the scores that a run recorded, by split, beside facts such as its step; empty where there are none.

    Raises WeightsError where they are not what was recorded.
    """
    title = f"results {str(folder / RESULTS)!r}"
    try:
        results = parse_json((folder / RESULTS).read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise WeightsError(
            f"{title}: damaged, not JSON ({describe_error(error)}): restore it from a copy, or remove it"
        ) from error
    check_checksum(results, title)
    return results if isinstance(results, dict) else {}


def read_recorded_recipe(folder: Path) -> dict[str, Any]:
    """Read the recipe that a run was trained by; empty where none can be read."""
    try:
        recipe = read_yaml(folder / RECIPE)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return recipe if isinstance(recipe, dict) else {}
