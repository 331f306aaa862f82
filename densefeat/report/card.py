"""The card of a model: its stages, where its weights come from, and the accuracy that was measured with them."""

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
    describe_weights_source,
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
    """The facts about a model.

    ``facts``, ``recipe``: names and values, for people; ``measured``: accuracies that the files of the weights record.
    """

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
    """Read the card of a model: a name of densefeat or timm, or the folder of a run.

    Nothing is downloaded: the card has the hash of published weights only if their file is on this machine.

    Raises:
        UsageError: The model is unknown, or its structure is.
        WeightsError: ``weights``, or those of a run, do not fit.
    """
    return _read_run_card(model, weights) if is_run_folder(model) else _read_name_card(model, weights)


def _read_name_card(model: str, weights: str | Path | None) -> ModelCard:
    config = find_config(model)
    network = timm.create_model(model) if weights is None else load_known_network(model, weights)
    size, stages = _measure_stages(network)
    file = Path(weights) if weights is not None else find_weights_file(config) if config.has_weights else None
    source = "none" if not config.has_weights and file is None else str(weights) if weights else describe_weights_source(config)
    facts = [
        ("model", ".".join(filter(None, (config.architecture, config.tag))) if weights is None else model),
        ("weights", source),
        ("SHA-256 of their file", file_sha256(file) if file else _NOT_HERE if config.has_weights else "none"),
        ("licence", (config.license or "not stated") if weights is None else "not stated"),
        ("classes", _format_classes(network.num_classes, read_class_names(file))),  # type: ignore[arg-type]
        ("input", _format_input(network)),
    ]
    card_rows: dict[str, str] = dict(_CARD_ROW.findall(read_card_text(file) or ""))
    facts += [(f"its card: {name}", value) for name, value in card_rows.items()]
    architecture = split_model_name_tag(model)[0]
    return ModelCard(model, architecture, size, stages, facts, [], _parse_points(architecture, card_rows, stages))


def _read_run_card(folder: str, weights: str | Path | None) -> ModelCard:
    loaded = load_network(folder, weights, head=True)
    network, run, file = loaded.model, loaded.run, loaded.file
    assert run is not None and file is not None  # noqa: PT018  (for mypy)
    size, stages = _measure_stages(network)
    facts = [
        ("model", f"{run.architecture}, head: {run.head}"),
        ("weights", str(file)),
        ("SHA-256 of their file", str(loaded.sha256)),
        ("licence", str(run.pretrained_cfg.get("license") or "not stated")),
        ("classes", _format_classes(run.num_classes, run.classes)),
        ("input", _format_input(network)),
    ]
    recipe = read_recorded_recipe(run.path)
    settings = [(name, _format_value(value)) for name, value in recipe.items() if value is not None]
    points = _read_run_points(run, stages) if weights is None else []
    return ModelCard(folder, run.architecture, size, stages, facts, settings, points)


def _measure_stages(network: nn.Module) -> tuple[int, list[Stage]]:
    size = Preprocessing.for_model(network).size
    return size, stages_of(network, size)


def _format_classes(count: int, names: list[str] | None) -> str:
    if not names or len(names) != count:
        return f"{count:,}"
    more = ", …" if len(names) > _SHOWN_CLASSES else ""
    return f"{count:,}: {', '.join(names[:_SHOWN_CLASSES])}{more}"


def _format_input(network: nn.Module) -> str:
    prep = Preprocessing.for_model(network)
    means, deviations = (", ".join(f"{value:g}" for value in values) for values in (prep.mean, prep.std))
    return f"3×{prep.size}×{prep.size}, {prep.interpolation}, crop {prep.crop_pct:g}, mean {means}, std {deviations}"


def _parse_points(architecture: str, rows: dict[str, str], stages: list[Stage]) -> list[Point]:
    match = _CARD_TOP1.search(rows.get("accuracy", ""))
    if match is None:
        return []
    data = rows.get("data", "its own data").split(":")[0]
    cost = sum_stages(stages)
    return [Point(architecture, data, float(match.group(1)), cost.parameters, cost.macs, False, "its card")]


def _read_run_points(run: RunConfig, stages: list[Stage]) -> list[Point]:
    """Return the top-1 that a run ended with, on its test images if it has any, else on its validation images."""
    results = read_results(run.path)
    where, name = ("test" if results.get("test") else "val"), run.path.resolve().name
    top1 = (results.get(where) or {}).get("top1")
    if not isinstance(top1, int | float):
        return []
    data, cost = _name_data(read_recorded_recipe(run.path)), sum_stages(stages)
    source = name if where == "test" else f"{name}, validation"
    return [Point(run.architecture, data, float(top1), cost.parameters, cost.macs, False, source)]


def _make_sketch(run: RunConfig) -> nn.Module:
    """Make a run's network on the meta device, which has structure and no weights."""
    with torch.device("meta"):
        return make_network(run)


def _name_data(recipe: dict[str, Any]) -> str:
    """Return the papers' name of a recipe's data set, or the name of its folder for other data.

    A "+" stands for the papers' augmentation, shift and mirror. Any other augmentation is named, since accuracies with it are
    not comparable.
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
    """Collect the points of all evaluated runs in a folder whose networks are DenseNets or DelugeNets; no weights are read.

    Raises UsageError if the folder does not exist.
    """
    if not folder.is_dir():
        raise UsageError(f"runs {str(folder)!r}: no such folder")
    points = []
    for path in sorted(folder.iterdir()):
        if (path / RESULTS).is_file():
            try:
                run = read_run(path)
                points += _read_run_points(run, _measure_stages(_make_sketch(run))[1])
            except DensefeatError:  # another kind of network, or an unfinished run: skip it
                continue
    return points


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
