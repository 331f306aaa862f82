"""The worth of each connection within the blocks: the accuracy that is lost without it.

A connection is removed by setting its weights to zero: for a DenseNet the columns of the reader's first convolution that belong
to the source, for a DelugeNet the affine weights of the source's norm. This sets a cell of Figure 5 to 0 and is the arithmetic
that a pruned network saves. Setting the source's *features* to zero would be different: the reader's BatchNorm and ReLU would
turn them into a constant other than 0, which the convolution still reads, so that the connection would remain as a bias.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

from densefeat.base import atomic_file, has_header, output_errors, write_csv
from densefeat.errors import UsageError
from densefeat.nets import DelugeBlock
from densefeat.report.connections import BlockReader, check_classifies, find_readers, list_blocks, list_layers
from densefeat.report.judging import Journal, Judgement, judge, judge_logits, judge_once, zero_weights
from densefeat.report.sample import Sample

_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)  # shares of the connections that are removed together
_RANDOM_SEEDS = 3
PRUNING_COLUMNS = ("block", "target", "source", "mean_abs_weight", "accuracy_lost", "loss_rise", "broken", "mended", "p_value")
BROKEN, LOST = "fewest images broken first", "least accuracy lost first"
WEIGHT, RANDOM = "smallest mean |w| first", "at random"

_Key = tuple[int, str, int]  # block, reader's name, source


@dataclass(frozen=True)
class RemovedConnection:
    """A connection, and the effect of removing it alone, on the first half of the images.

    Attributes:
        accuracy_lost: Points of top-1.
        loss_rise: Rise of the mean cross-entropy.
        broken, mended: Images that were classified correctly and no longer are, and the reverse.
        p_value: McNemar's exact test of these two numbers, two-sided.
    """

    block: int
    target: str
    source: int
    mean_abs_weight: float
    accuracy_lost: float
    loss_rise: float
    broken: int
    mended: int
    p_value: float


@dataclass(frozen=True)
class Pruning:
    """The result of :func:`prune`.

    Attributes:
        chosen_on, drawn_on: Numbers of images: single connections are judged on the first half, the curves on the second.
        whole: Top-1 of the network with all connections, on the two halves, per cent.
        removed: The connections, those that break the fewest images first.
        curves: For each order, the top-1 on the second half, per cent, without the first ``shares`` of the connections.
    """

    chosen_on: int
    drawn_on: int
    whole: tuple[float, float]
    removed: tuple[RemovedConnection, ...]
    shares: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]


def prune(model: nn.Module, sample: Sample, journal: Journal, advance: Callable[[int], None] = lambda _: None) -> Pruning:
    """Remove every connection alone on one half of the images, then all of them in several orders on the other half.

    The halves are the even and the odd images, so that an order that is good by chance on one half is not so on the other.

    Args:
        model: A network in eval mode, on the device of the images. Its weights are changed during the work, then restored.
        journal: The judgements of earlier calls, to which this one adds its own.
        advance: Called with the number of connections judged, and of points of curves.

    Raises:
        UsageError: The network's connections are not known, or it has no classifier.
    """
    check_classifies(model)
    if len(sample) < 2:
        raise UsageError(f"{len(sample)} labelled images: at least 2 are needed")
    readers = find_readers(model)
    choosing, drawing = sample.part(slice(0, None, 2)), sample.part(slice(1, None, 2))
    whole = judge_once(journal, "whole", lambda: [judge(model, choosing), judge(model, drawing)])
    removed = _sort_by_cost(_remove_each(model, readers, choosing, whole[0], journal, advance))
    curves = {
        name: _mean_curve(_measure_curve(model, readers, order, drawing, f"{name} {number}", journal, advance)
                         for number, order in enumerate(orders))
        for name, orders in _make_orders(removed).items()
    }  # fmt: skip
    return Pruning(len(choosing), len(drawing), (whole[0].top1, whole[1].top1), tuple(removed), _SHARES, curves)


def count_work(model: nn.Module) -> int:
    """Return the sum of the arguments of ``advance`` over a complete call of :func:`prune`."""
    return sum(len(reader.weights) for reader in find_readers(model)) + (3 + _RANDOM_SEEDS) * len(_SHARES)


def _remove_each(
    model: nn.Module,
    readers: Sequence[BlockReader],
    sample: Sample,
    whole: Judgement,
    journal: Journal,
    advance: Callable[[int], None],
) -> list[RemovedConnection]:
    """Remove each connection alone. A block's input is computed once, and only what depends on the reader is computed again."""
    removed: list[RemovedConnection] = []
    for number in range(1, len(list_blocks(model)) + 1):
        tail = BlockTail(model, number, sample)
        for reader in readers:
            if reader.block == number:
                judgements = judge_once(journal, f"block {number}, {reader.name}", partial(tail.judge_without, reader))
                removed += [_measure_effect(reader, source, one, whole) for source, one in enumerate(judgements)]
                advance(len(judgements))
    return removed


class BlockTail:
    """A network from block ``number`` (from 1) to its end, with the images as that block reads them."""

    def __init__(self, model: nn.Module, number: int, sample: Sample) -> None:
        name, self.block = list_blocks(model)[number - 1]
        stages = list(model.features.named_children())  # type: ignore[union-attr]
        place = [stage_name for stage_name, _ in stages].index(name)
        self.before, self.after = ([stage for _, stage in part] for part in (stages[:place], stages[place + 1 :]))
        self.model, self.sample = model, sample

    @cached_property
    def inputs(self) -> list[torch.Tensor]:
        """The block's inputs, piece by piece."""
        with torch.inference_mode():
            return [_run_stages(self.before, x) for x, _ in self.sample.pieces()]

    @torch.inference_mode()
    def judge_without(self, reader: BlockReader) -> list[Judgement]:
        """Judge the network without each source of a reader in turn; what comes before the reader is computed once."""
        answers: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in reader.weights]
        for x, (_, y) in zip(self.inputs, self.sample.pieces(), strict=True):
            outputs = _open_outputs(self.block, x)
            for layer in list_layers(self.block)[: reader.place]:
                outputs.append(layer(outputs))
            for weight, pairs in zip(reader.weights, answers, strict=True):
                with zero_weights([weight]):
                    pairs.append((self._logits(list(outputs), reader.place), y))
        return [judge_logits(pairs) for pairs in answers]

    def _logits(self, outputs: list[torch.Tensor], place: int) -> torch.Tensor:
        """Compute the logits from the outputs of the block's layers before ``place``."""
        for layer in list_layers(self.block)[place:]:
            outputs.append(layer(outputs))
        return self.model.forward_head(_run_stages(self.after, _close_outputs(self.block, outputs)))  # type: ignore[operator]


def _run_stages(stages: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    for stage in stages:
        x = stage(x)
    return x


def _open_outputs(block: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the list that a block's layers read and append to."""
    return [block.opener(x)] if isinstance(block, DelugeBlock) else [x]


def _close_outputs(block: nn.Module, outputs: list[torch.Tensor]) -> torch.Tensor:
    return block.aggregate(outputs) if isinstance(block, DelugeBlock) else torch.cat(outputs, 1)


def _measure_effect(reader: BlockReader, source: int, without: Judgement, whole: Judgement) -> RemovedConnection:
    broken = int((whole.right & ~without.right).sum())
    mended = int((~whole.right & without.right).sum())
    p_value = float(binomtest(broken, broken + mended).pvalue) if broken + mended else 1.0
    lost, rise = whole.top1 - without.top1, without.loss - whole.loss
    weight = float(reader.weights[source].abs().double().mean())
    return RemovedConnection(reader.block, reader.name, source, weight, lost, rise, broken, mended, p_value)


def _sort_by_cost(removed: Sequence[RemovedConnection]) -> list[RemovedConnection]:
    """Sort connections by the number of images they break, then by how far they change the loss.

    Mended images do not count, since they are chance: among hundreds of connections those that seem to gain most are those that
    change most, and removing several of them does harm.
    """
    return sorted(removed, key=lambda each: (each.broken, abs(each.loss_rise)))


def _make_orders(removed: Sequence[RemovedConnection]) -> dict[str, list[list[_Key]]]:
    """Return orders of all connections by name; the random one has several. ``removed`` has the cheapest first."""
    by_place = sorted(removed, key=lambda each: (each.block, each.target, each.source))
    by_chance = [np.random.default_rng(seed).permutation(len(by_place)) for seed in range(_RANDOM_SEEDS)]
    return {
        BROKEN: [_list_keys(removed)],
        LOST: [_list_keys(sorted(by_place, key=lambda each: (each.accuracy_lost, each.loss_rise)))],
        WEIGHT: [_list_keys(sorted(by_place, key=lambda each: each.mean_abs_weight))],
        RANDOM: [_list_keys([by_place[i] for i in order]) for order in by_chance],
    }


def _list_keys(removed: Iterable[RemovedConnection]) -> list[_Key]:
    return [(each.block, each.target, each.source) for each in removed]


def _measure_curve(
    model: nn.Module,
    readers: Sequence[BlockReader],
    order: Sequence[_Key],
    sample: Sample,
    name: str,
    journal: Journal,
    advance: Callable[[int], None],
) -> list[float]:
    """Return the top-1, per cent, without the first connections of an order, for each of ``_SHARES``."""
    views = {(reader.block, reader.name, source): weight for reader in readers for source, weight in enumerate(reader.weights)}
    top1 = []
    for share in _SHARES:
        first = [views[key] for key in order[: round(share * len(order))]]

        def judge_rest(first: list[torch.Tensor] = first) -> list[Judgement]:
            with zero_weights(first):
                return [judge(model, sample)]

        top1.append(judge_once(journal, f"{name}: {share:g}", judge_rest)[0].top1)
        advance(1)
    return top1


def _mean_curve(curves: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(np.mean(list(curves), axis=0).tolist())


def write_pruning_csv(pruning: Pruning, path: Path) -> None:
    """Write a line for each connection, the cheapest first."""
    with (
        atomic_file(path, has_header(PRUNING_COLUMNS)) as beside,
        output_errors(path),
        open(beside, "w", newline="", encoding="utf-8") as file,
    ):
        rows = ([getattr(each, name) for name in PRUNING_COLUMNS] for each in pruning.removed)
        write_csv(file, PRUNING_COLUMNS, rows, repr(str(path)))
