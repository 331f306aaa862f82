"""Feature reuse within the blocks of a network: Figure 5 of the DenseNet paper in numbers, and what the paper sees there."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from densefeat.base import atomic_file, output_errors
from densefeat.evaluation import load_network
from densefeat.loading import HeadedNet, find_config, names_folder
from densefeat.nets import DelugeNet
from densefeat.report.connections import CLASSIFIER, TRANSITION, Reader, check_known, find_readers

_SPREAD = 0.5  # of its sources a reader must use in effect, to be said to spread its weight over them
_LEAST = 0.75  # of the layers must give the block's input the least, for "consistently"
_CONCENTRATED = 1.25  # times its even share must the end of the block have, to be said to be preferred
REUSE_COLUMNS = ("block", "target", "source", "mean_abs_weight", "weights")


@dataclass(frozen=True)
class Column:
    """What one reader gives to each of its sources. ``means``: float64, mean |weight|; ``weights``: how many these are."""

    reader: Reader
    means: np.ndarray
    weights: np.ndarray

    @property
    def spread(self) -> float:
        """The effective number of sources, exp of the entropy of the means' shares, over their number: 1 where all are equal.

        Without any weight: that of one source.
        """
        total = self.means.sum()
        shares = self.means[self.means > 0] / total if total else np.ones(1)
        return float(np.exp(-(shares * np.log(shares)).sum()) / len(self.means))


@dataclass(frozen=True)
class Reuse:
    """The columns of all blocks, in order. ``cross_layer``: of a DelugeNet's cross-layer depthwise layers."""

    columns: tuple[Column, ...]
    cross_layer: bool

    @property
    def blocks(self) -> int:
        return max(column.reader.block for column in self.columns)

    def block(self, number: int) -> list[Column]:
        return [column for column in self.columns if column.reader.block == number]

    def triangle(self, number: int) -> np.ndarray:
        """float64 ``(sources, readers)`` of a block, the block's input first, NaN where a reader comes before a source."""
        columns = self.block(number)
        drawn = np.full((max(len(column.means) for column in columns), len(columns)), np.nan)
        for place, column in enumerate(columns):
            drawn[: len(column.means), place] = column.means
        return drawn


def feature_reuse(model: nn.Module) -> Reuse:
    """Mean absolute weight of every connection within the blocks of ``model``, in float64.

    DenseNet: of the first convolution of a layer, of the transition's, and of the classifier, over the channels of one source.
    DelugeNet: of the affine weights of a cross-layer depthwise layer's norm for one source.

    Raises UsageError for a network whose connections are not known.
    """
    return Reuse(tuple(_column_of(reader) for reader in find_readers(model)), isinstance(model, DelugeNet))


def _column_of(reader: Reader) -> Column:
    means = [float(weight.abs().double().mean()) for weight in reader.weights]
    return Column(reader, np.array(means), np.array([weight.numel() for weight in reader.weights]))


def write_reuse_csv(reuse: Reuse, path: Path) -> None:
    """A line for each connection: block, target, source (0: the block's input), mean_abs_weight, weights."""
    with atomic_file(path) as beside, output_errors(path), open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(REUSE_COLUMNS)
        for column in reuse.columns:
            for source, (mean, weights) in enumerate(zip(column.means.tolist(), column.weights.tolist(), strict=True)):
                writer.writerow([column.reader.block, column.reader.name, source, repr(mean), weights])


@dataclass(frozen=True)
class Finding:
    """One of the paper's observations as a number for each block (None: the block has none), and whether all of them hold.

    ``low``, ``high``: where a value must lie.
    """

    observation: str
    statistic: str
    values: tuple[float | None, ...]
    low: float
    high: float = np.inf

    @property
    def holds(self) -> bool | None:
        """None where no block has a value."""
        known = [value for value in self.values if value is not None]
        return all(self.low <= value <= self.high for value in known) if known else None

    @property
    def condition(self) -> str:
        return f"≥ {self.low:g}" if np.isinf(self.high) else f"≤ {self.high:g}"


def observations(reuse: Reuse) -> list[Finding]:
    """The four observations of section 5 of the DenseNet paper, each by a statistic that may say no.

    An observation of two lines holds where both do. docs/report.md defines the statistics.
    """
    spread = "effective sources / sources"
    return [
        Finding("1 layers read the whole block", f"{spread}, least of the layers", _each(reuse, _least_spread), _SPREAD),
        Finding("2 transitions read the whole block", spread, _each(reuse, _transition_spread), _SPREAD),
        Finding("3 the block's input is redundant", "layers that give it the least", _each(reuse, _share_of_least), _LEAST),
        Finding("3 the block's input is redundant", "its mean / mean of the others", _each(reuse, _input_ratio), 0, 1),
        Finding(
            "4 the classifier prefers late features", "last quarter / even share", _each(reuse, _late_share), _CONCENTRATED
        ),
    ]


def _each(reuse: Reuse, statistic: Callable[[list[Column], int], float | None]) -> tuple[float | None, ...]:
    return tuple(statistic(reuse.block(number), number) for number in range(1, reuse.blocks + 1))


def _layers_with_choice(columns: Sequence[Column]) -> list[Column]:
    """Layers, without those that read one source alone."""
    return [column for column in columns if not column.reader.leaves and len(column.means) > 1]


def _named(columns: Sequence[Column], name: str) -> Column | None:
    return next((column for column in columns if column.reader.name == name), None)


def _least_spread(columns: list[Column], _: int) -> float | None:
    return min((column.spread for column in _layers_with_choice(columns)), default=None)


def _transition_spread(columns: list[Column], _: int) -> float | None:
    transition = _named(columns, TRANSITION)
    return None if transition is None else transition.spread


def _share_of_least(columns: list[Column], number: int) -> float | None:
    """Of the layers with several sources; not in the first block, whose input is no transition's output."""
    layers = _layers_with_choice(columns)
    if number == 1 or not layers:
        return None
    return float(np.mean([column.means[0] < column.means[1:].min() for column in layers]))


def _input_ratio(columns: list[Column], number: int) -> float | None:
    layers = _layers_with_choice(columns)
    if number == 1 or not layers:
        return None
    others = sum(column.means[1:].mean() for column in layers)
    return float(sum(column.means[0] for column in layers) / others) if others else None


def _late_share(columns: list[Column], _: int) -> float | None:
    """The share of the classifier's weight on the last quarter of the layers, over the share of its channels that these are."""
    classifier = _named(columns, CLASSIFIER)
    if classifier is None:
        return None
    quarter = max(1, (len(classifier.means) - 1) // 4)
    sums = classifier.means * classifier.weights
    if not sums.sum():
        return None
    return float(sums[-quarter:].sum() / sums.sum() / (classifier.weights[-quarter:].sum() / classifier.weights.sum()))


def check_structure(model: str) -> None:
    """UsageError for a name of no network, or of one whose connections are not known; before any weights are fetched."""
    if names_folder(model):
        return
    find_config(model)
    try:
        with torch.device("meta"):
            sketch = timm.create_model(model)
    except Exception:  # some of timm's cannot be made without memory: they are looked at when they are loaded
        return
    check_known(sketch)


def load_plain(model: str, weights: str | Path | None = None) -> nn.Module:
    """The network that a name or a run's folder stands for, with trained weights, its classifier's too; in eval mode.

    Of a run with a head of ours the network below it, which has no classifier. Raises UsageError and WeightsError as
    :func:`densefeat.evaluation.accuracy.load_network`.
    """
    check_structure(model)
    network, _ = load_network(model, weights)
    return network.backbone if isinstance(network, HeadedNet) else network
