"""Feature reuse within the blocks of a network: the numbers of Figure 5 of the DenseNet paper, and the paper's observations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from densefeat.base import atomic_file, has_header, output_errors, write_csv
from densefeat.heads import HeadedNet
from densefeat.loading import find_config, is_run_folder, load_network
from densefeat.nets import DelugeNet
from densefeat.report.connections import CLASSIFIER, TRANSITION, BlockReader, check_known, find_readers

# the bounds are ours: the paper gives none
_SPREAD = 0.5  # share of its sources that a reader must use in effect, for "spreads its weight over them"
_LEAST = 0.75  # share of the layers that must give the block's input the least weight, for "consistently"
_CONCENTRATED = 1.25  # times its even share that the end of the block must have, for "prefers"
REUSE_COLUMNS = ("block", "target", "source", "mean_abs_weight", "weights")


@dataclass(frozen=True)
class ReuseColumn:
    """The weights of a reader by source. ``means``: mean |weight|, float64; ``weights``: the number of weights."""

    reader: BlockReader
    means: np.ndarray
    weights: np.ndarray

    @property
    def spread(self) -> float:
        """The effective number of sources over their number, 1 if all have equal means.

        The effective number is exp of the entropy of the means' shares; if all means are 0 it counts as 1 source.
        """
        total = self.means.sum()
        shares = self.means[self.means > 0] / total if total else np.ones(1)
        return float(np.exp(-(shares * np.log(shares)).sum()) / len(self.means))


@dataclass(frozen=True)
class Reuse:
    """The feature reuse of all blocks, in order. ``cross_layer``: whether the network is a DelugeNet."""

    columns: tuple[ReuseColumn, ...]
    cross_layer: bool

    @property
    def blocks(self) -> int:
        return max(column.reader.block for column in self.columns)

    def block(self, number: int) -> list[ReuseColumn]:
        return [column for column in self.columns if column.reader.block == number]

    def triangle(self, number: int) -> np.ndarray:
        """Return float64 ``(sources, readers)`` of a block, its input first; NaN where a reader comes before a source."""
        columns = self.block(number)
        means = np.full((max(len(column.means) for column in columns), len(columns)), np.nan)
        for place, column in enumerate(columns):
            means[: len(column.means), place] = column.means
        return means


def feature_reuse(model: nn.Module) -> Reuse:
    """Compute the mean absolute weight of every connection within the blocks of ``model``, in float64.

    For a DenseNet these are the weights of a layer's first convolution, of the transition's convolution, and of the classifier,
    over the channels of one source. For a DelugeNet they are the affine weights of a cross-layer depthwise layer's norm for
    one source.

    Raises UsageError for a network whose connections are not known.
    """
    return Reuse(tuple(_make_column(reader) for reader in find_readers(model)), isinstance(model, DelugeNet))


def _make_column(reader: BlockReader) -> ReuseColumn:
    means = [float(weight.abs().double().mean()) for weight in reader.weights]
    return ReuseColumn(reader, np.array(means), np.array([weight.numel() for weight in reader.weights]))


def write_reuse_csv(reuse: Reuse, path: Path) -> None:
    """Write a line for each connection: block, target, source (0: the block's input), mean_abs_weight, weights."""
    with (
        atomic_file(path, has_header(REUSE_COLUMNS)) as beside,
        output_errors(path),
        open(beside, "w", newline="", encoding="utf-8") as file,
    ):
        rows = (
            [column.reader.block, column.reader.name, source, repr(mean), weights]
            for column in reuse.columns
            for source, (mean, weights) in enumerate(zip(column.means.tolist(), column.weights.tolist(), strict=True))
        )
        write_csv(file, REUSE_COLUMNS, rows, repr(str(path)))


@dataclass(frozen=True)
class Finding:
    """One of the paper's observations as a number for each block, None if the block has no such number.

    The observation holds if all numbers lie between ``low`` and ``high``.
    """

    observation: str
    statistic: str
    values: tuple[float | None, ...]
    low: float
    high: float = np.inf

    @property
    def holds(self) -> bool | None:
        """Whether the observation holds; None if no block has a number."""
        known = [value for value in self.values if value is not None]
        return all(self.low <= value <= self.high for value in known) if known else None

    @property
    def condition(self) -> str:
        return f"≥ {self.low:g}" if np.isinf(self.high) else f"≤ {self.high:g}"


def observations(reuse: Reuse) -> list[Finding]:
    """Check the four observations of section 5 of the DenseNet paper, each by a statistic that may contradict it.

    An observation with two findings holds if both do. docs/report.md defines the statistics.
    """
    spread = "effective sources / sources"
    return [
        Finding(
            "1 layers read the whole block", f"{spread}, least of the layers", _compute_by_block(reuse, _least_spread), _SPREAD
        ),
        Finding("2 transitions read the whole block", spread, _compute_by_block(reuse, _transition_spread), _SPREAD),
        Finding(
            "3 the block's input is redundant",
            "layers that give it the least",
            _compute_by_block(reuse, _measure_least_share),
            _LEAST,
        ),
        Finding(
            "3 the block's input is redundant", "its mean / mean of the others", _compute_by_block(reuse, _input_ratio), 0, 1
        ),
        Finding(
            "4 the classifier prefers late features",
            "last quarter / even share",
            _compute_by_block(reuse, _late_share),
            _CONCENTRATED,
        ),
    ]


def _compute_by_block(reuse: Reuse, statistic: Callable[[list[ReuseColumn], int], float | None]) -> tuple[float | None, ...]:
    return tuple(statistic(reuse.block(number), number) for number in range(1, reuse.blocks + 1))


def _select_layers(columns: Sequence[ReuseColumn]) -> list[ReuseColumn]:
    """Return the layers that read more than one source."""
    return [column for column in columns if not column.reader.leaves and len(column.means) > 1]


def _find_column(columns: Sequence[ReuseColumn], name: str) -> ReuseColumn | None:
    return next((column for column in columns if column.reader.name == name), None)


def _least_spread(columns: list[ReuseColumn], _: int) -> float | None:
    return min((column.spread for column in _select_layers(columns)), default=None)


def _transition_spread(columns: list[ReuseColumn], _: int) -> float | None:
    transition = _find_column(columns, TRANSITION)
    return None if transition is None else transition.spread


def _measure_least_share(columns: list[ReuseColumn], number: int) -> float | None:
    """Return the share of the layers that give the block's input the least.

    The result is None for the first block, whose input comes from no transition.
    """
    layers = _select_layers(columns)
    if number == 1 or not layers:
        return None
    return float(np.mean([column.means[0] < column.means[1:].min() for column in layers]))


def _input_ratio(columns: list[ReuseColumn], number: int) -> float | None:
    layers = _select_layers(columns)
    if number == 1 or not layers:
        return None
    others = sum(column.means[1:].mean() for column in layers)
    return float(sum(column.means[0] for column in layers) / others) if others else None


def _late_share(columns: list[ReuseColumn], _: int) -> float | None:
    """Return the last quarter of the layers' share of the classifier's weight, over their share of its channels."""
    classifier = _find_column(columns, CLASSIFIER)
    if classifier is None:
        return None
    quarter = max(1, (len(classifier.means) - 1) // 4)
    sums = classifier.means * classifier.weights
    if not sums.sum():
        return None
    return float(sums[-quarter:].sum() / sums.sum() / (classifier.weights[-quarter:].sum() / classifier.weights.sum()))


def check_structure(model: str) -> None:
    """Raise UsageError, before any weights are downloaded, for an unknown model or one whose connections are not known."""
    if is_run_folder(model):
        return
    find_config(model)
    try:
        with torch.device("meta"):
            sketch = timm.create_model(model)
    except Exception:  # some networks of timm cannot be built without memory: they are checked when they are loaded
        return
    check_known(sketch)


def load_known_network(model: str, weights: str | Path | None = None) -> nn.Module:
    """Load a network whose connections are known, by name or a run's folder, with trained weights and in eval mode.

    It has its classifier. If the run has a head of densefeat, the backbone is returned, without a classifier. Raises UsageError
    and WeightsError as :func:`densefeat.loading.load_network` does.
    """
    check_structure(model)
    network = load_network(model, weights, head=True).model
    return network.backbone if isinstance(network, HeadedNet) else network
