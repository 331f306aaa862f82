"""What is known of a model: the network as it is made, where its weights come from, and what they were measured to do."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import split_model_name_tag
from torch import nn

from densefeat.errors import DensefeatError, UsageError
from densefeat.images import Preprocessing
from densefeat.loading import (
    RESULTS,
    RunConfig,
    describe_source,
    find_config,
    find_weights_file,
    is_run_folder,
    load_network,
    make_network,
    read_card_text,
    read_class_names,
    read_recorded_recipe,
    read_results,
    read_run,
)
from densefeat.nets import file_sha256
from densefeat.report.published import Point, find_stem
from densefeat.report.reuse import load_known_network
from densefeat.report.stages import Stage, stages_of, sum_stages

_CARD_ROW = re.compile(r"\| ([\w ]+) \| (.+) \|")
_CARD_TOP1 = re.compile(r"([\d.]+) % top-1")
_NOT_HERE = "not on this machine"
_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class ModelCard:
    """``facts`` and ``recipe``: names and values, for people; ``measured``: what the weights' own files say they reached."""

    name: str
    architecture: str
    image_size: int
    stages: list[Stage]
    facts: list[tuple[str, str]]
    recipe: list[tuple[str, str]]
    measured: list[Point]

    @property
    def stem(self) -> str:
        return find_stem(self.architecture)


def read_card(model: str, weights: str | Path | None = None) -> ModelCard:
    """What is known of a name of ours or timm's, or of a run's folder.

    Nothing is fetched: of published weights the hash is told where their file is on this machine.

    Raises:
        UsageError: Unknown model, or none whose structure is known.
        WeightsError: ``weights``, or those of a run, that do not fit.
    """
    return _read_run_card(model, weights) if is_run_folder(model) else _read_name_card(model, weights)


def _read_name_card(model: str, weights: str | Path | None) -> ModelCard:
    config = find_config(model)
    network = timm.create_model(model) if weights is None else load_known_network(model, weights)
    size, stages = _measure_stages(network)
    file = Path(weights) if weights is not None else find_weights_file(config) if config.has_weights else None
    source = "none" if not config.has_weights and file is None else str(weights) if weights else describe_source(config)
    facts = [
        ("model", ".".join(filter(None, (config.architecture, config.tag))) if weights is None else model),
        ("weights", source),
        ("SHA-256 of their file", file_sha256(file) if file else _NOT_HERE if config.has_weights else "none"),
        ("licence", (config.license or "not told") if weights is None else "not told"),
        ("classes", _format_classes(network.num_classes, read_class_names(file))),  # type: ignore[arg-type]
        ("input", _format_input(network)),
    ]
    own: dict[str, str] = dict(_CARD_ROW.findall(read_card_text(file) or ""))
    facts += [(f"its card: {name}", value) for name, value in own.items()]
    architecture = split_model_name_tag(model)[0]
    return ModelCard(model, architecture, size, stages, facts, [], _parse_points(architecture, own, stages))


def _read_run_card(folder: str, weights: str | Path | None) -> ModelCard:
    loaded = load_network(folder, weights, head=True)
    network, run, file = loaded.model, loaded.run, loaded.file
    assert run is not None and file is not None  # noqa: PT018  (for mypy)
    size, stages = _measure_stages(network)
    facts = [
        ("model", f"{run.architecture}, head: {run.head}"),
        ("weights", str(file)),
        ("SHA-256 of their file", str(loaded.sha256)),
        ("licence", str(run.pretrained_cfg.get("license") or "not told")),
        ("classes", _format_classes(run.num_classes, run.classes)),
        ("input", _format_input(network)),
    ]
    recipe = read_recorded_recipe(run.path)
    told = [(name, _format_value(value)) for name, value in recipe.items() if value is not None]
    points = _read_run_points(run, stages) if weights is None else []
    return ModelCard(folder, run.architecture, size, stages, facts, told, points)


def _measure_stages(network: nn.Module) -> tuple[int, list[Stage]]:
    size = Preprocessing.for_model(network).size
    return size, stages_of(network, size)


def _format_classes(count: int, names: list[str] | None) -> str:
    if not names or len(names) != count:
        return f"{count:,}"
    more = ", …" if len(names) > _SHOWN_CLASSES else ""
    return f"{count:,}: {', '.join(names[:_SHOWN_CLASSES])}{more}"


def _format_input(network: nn.Module) -> str:
    own = Preprocessing.for_model(network)
    means, deviations = (", ".join(f"{value:g}" for value in values) for values in (own.mean, own.std))
    return f"3×{own.size}×{own.size}, {own.interpolation}, crop {own.crop_pct:g}, mean {means}, std {deviations}"


def _parse_points(architecture: str, rows: dict[str, str], stages: list[Stage]) -> list[Point]:
    found = _CARD_TOP1.search(rows.get("accuracy", ""))
    if found is None:
        return []
    data = rows.get("data", "its own data").split(":")[0]
    cost = sum_stages(stages)
    return [Point(architecture, data, float(found.group(1)), cost.parameters, cost.macs, False, "its card")]


def _read_run_points(run: RunConfig, stages: list[Stage]) -> list[Point]:
    """The top-1 that a run ended with: on its test images; if it has none on those that its weights were chosen by, as told."""
    results = read_results(run.path)
    where, name = ("test" if results.get("test") else "val"), run.path.resolve().name
    top1 = (results.get(where) or {}).get("top1")
    if not isinstance(top1, int | float):
        return []
    data, cost = _name_data(read_recorded_recipe(run.path)), sum_stages(stages)
    told = name if where == "test" else f"{name}, validation"
    return [Point(run.architecture, data, float(top1), cost.parameters, cost.macs, False, told)]


def _make_sketch(run: RunConfig) -> nn.Module:
    """Make a run's network on the meta device, which has structure and no weights."""
    with torch.device("meta"):
        return make_network(run)


def _name_data(recipe: dict[str, Any]) -> str:
    """As the papers call it, where it is theirs; else the name of what was trained on.

    "+" is their shift and mirror augmentation; another one is named: figures with it do not compare.
    """
    known = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet", "svhn": "SVHN", "tin200": "Tiny ImageNet"}
    name = known.get(str(recipe.get("data")))
    if name is None:
        return Path(str(recipe.get("train") or "its own data")).name
    augment = str(recipe.get("augment", "none"))
    if name == "ImageNet" or augment == "none":
        return name
    return f"{name}+" if augment == "shift-mirror" else f"{name}, {augment}"


def collect_run_points(folder: Path) -> list[Point]:
    """Of every run in a folder that has been judged and whose network is one of ours; no weights are read.

    UsageError where there is no folder.
    """
    if not folder.is_dir():
        raise UsageError(f"runs {str(folder)!r}: no such folder")
    points = []
    for path in sorted(folder.iterdir()):
        if (path / RESULTS).is_file():
            try:
                run = read_run(path)
                points += _read_run_points(run, _measure_stages(_make_sketch(run))[1])
            except DensefeatError:  # another network's, or unfinished: the others count
                continue
    return points


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
