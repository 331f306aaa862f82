"""The files of a trained run: configuration as timm writes it, weights, and what the run recorded about itself."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.models import is_model, split_model_name_tag
from timm.models._hub import save_config_for_hf
from torch import nn

from densefeat.base import add_checksum, check_checksum, describe_error
from densefeat.errors import UsageError, WeightsError
from densefeat.heads import KINDS, HeadedNet

CONFIG, WEIGHTS, RESULTS, RECIPE = "config.json", "model.safetensors", "results.json", "recipe.yaml"
OWN = "densefeat"  # the key in CONFIG for what timm's configuration has no place for
_MAX_CONFIG = 2**26  # bytes
_MAX_CLASSES, _MAX_WIDTH, _MAX_PIXELS = 2**20, 2**16, 2**13
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
    ``head_width`` channels.
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
        hint = "not a run, or one that was not evaluated yet (a probe is for densefeat predict)"
        raise UsageError(f"model {str(folder)!r}: this folder holds no {CONFIG}: {hint}")
    if file.stat().st_size > _MAX_CONFIG:
        raise WeightsError(f"{str(file)!r}: {file.stat().st_size:,} bytes are too many for a configuration")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
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
        )
        _check_bounds(run)
        return run
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{str(file)!r}: no network can be made of it: {error}") from error


def _check_bounds(run: RunConfig) -> None:
    """Raise ValueError for a configuration that would fetch or read other files, or allocate memory that no weights fill."""
    if not is_model(run.architecture):
        raise ValueError(f"Unknown model {run.architecture!r}")
    if forbidden := _FORBIDDEN_ARGUMENTS & run.arguments.keys():
        raise ValueError(f"model_args has {min(forbidden)!r}")
    size = run.pretrained_cfg.get("input_size") or (3, 1, 1)
    if not 0 <= run.num_classes <= _MAX_CLASSES or not 0 < run.head_width <= _MAX_WIDTH or max(map(int, size)) > _MAX_PIXELS:
        raise ValueError(f"num_classes {run.num_classes}, head_width {run.head_width}, input_size {list(size)}")


def write_config(path: Path, model: nn.Module, entries: dict[str, Any], **options: Any) -> None:
    """Write a network's configuration as timm does, with entries of ours and a checksum. ``options``: timm's."""
    save_config_for_hf(model, str(path), entries, **options)
    config = add_checksum(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def make_network(run: RunConfig) -> nn.Module:
    """Make a run's network with fresh weights, head included: a :class:`HeadedNet` where the head is not timm's own."""
    if run.head == "linear":
        return make_backbone(run, run.num_classes)
    if run.head not in KINDS:
        raise WeightsError(f"run {str(run.path)!r}: head {run.head!r} is none of {', '.join(KINDS)}: update densefeat")
    return HeadedNet(make_backbone(run, 0), run.head, run.head_width, run.num_classes)


def make_backbone(run: RunConfig, num_classes: int) -> nn.Module:
    """Make timm's network of a run with fresh weights. WeightsError where it cannot be made."""
    arguments = run.arguments | {"num_classes": num_classes}  # the arguments may contain num_classes
    try:
        return timm.create_model(run.architecture, pretrained_cfg=run.pretrained_cfg, **arguments)
    except Exception as error:  # a file of another program can make timm raise anything
        raise WeightsError(f"{str(run.path / CONFIG)!r}: no network can be made of it: {error}") from error


def read_results(folder: Path) -> dict[str, Any]:
    """Read the scores that a run recorded, by split, beside facts such as its step; empty where there are none.

    Raises WeightsError where they are not what was recorded.
    """
    title = f"results {str(folder / RESULTS)!r}"
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except OSError:
        return {}
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{title}: damaged, not JSON ({describe_error(error)}): restore it from a copy, or remove it"
        ) from error
    check_checksum(results, title)
    return results if isinstance(results, dict) else {}


def read_recorded_recipe(folder: Path) -> dict[str, Any]:
    """Read the recipe that a run was trained by; empty where none can be read."""
    try:
        recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return recipe if isinstance(recipe, dict) else {}
