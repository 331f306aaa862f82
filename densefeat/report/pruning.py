"""What each connection within the blocks is worth: the accuracy that is lost without it.

A connection is removed by setting its weights to zero: for a DenseNet the columns of the reader's first convolution that
belong to the source, for a DelugeNet the affine weights of the source's norm. That is the cell of Figure 5 at 0, and the
arithmetic that a pruned network saves. Zeroing the source's *features* would be something else: the reader's BatchNorm and ReLU
would turn them into a constant other than 0, which the convolution still reads, and the connection would remain as a bias.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

from densefeat.base import atomic_file, output_errors
from densefeat.errors import UsageError
from densefeat.nets import DelugeBlock
from densefeat.report.connections import Reader, blocks_of, check_classifies, find_readers, layers_of
from densefeat.report.journal import Journal
from densefeat.report.judging import Judged, judge, judged, noted, without
from densefeat.report.sample import Sample

_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)  # of the connections, removed together
_RANDOM_SEEDS = 3
PRUNING_COLUMNS = ("block", "target", "source", "mean_abs_weight", "accuracy_lost", "loss_rise", "broken", "mended", "p_value")
BROKEN, LOST = "fewest images broken first", "least accuracy lost first"
WEIGHT, RANDOM = "smallest mean |w| first", "at random"

_Key = tuple[int, str, int]  # block, reader's name, source


@dataclass(frozen=True)
class Removed:
    """A connection, and what its removal alone does on the images that are for choosing.

    ``accuracy_lost``: in points; ``loss_rise``: of the mean cross-entropy; ``broken``, ``mended``: images that were right and
    are wrong, and the other way; ``p_value``: McNemar's exact test of these two, two-sided.
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
    """What :func:`prune` found.

    Attributes:
        chosen_on, drawn_on: Numbers of images: each connection alone was judged on the former, the curves on the others.
        whole: Of the whole network: top-1 on the former and on the latter, per cent.
        removed: Cheapest first: fewest images broken.
        curves: For each order the top-1 on the latter, per cent, after the first ``shares`` of the connections are removed.
    """

    chosen_on: int
    drawn_on: int
    whole: tuple[float, float]
    removed: tuple[Removed, ...]
    shares: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]


def prune(model: nn.Module, sample: Sample, done: Journal, advance: Callable[[int], None] = lambda _: None) -> Pruning:
    """Every connection alone on one half of the images, then all of them in several orders on the other half.

    The halves are the even and the odd ones: an order chosen by chance on some images does not look good on others.

    Args:
        model: In eval mode, on the device of the images; its weights are changed on the way and put back.
        done: What an earlier call has judged, and where this one notes its own.
        advance: Told of connections judged and of points of curves.

    Raises:
        UsageError: A network whose connections are not known, or without a classifier.
    """
    check_classifies(model)
    if len(sample) < 2:
        raise UsageError(f"{len(sample)} labelled images: at least 2 are needed")
    readers = find_readers(model)
    choosing, drawing = sample.part(slice(0, None, 2)), sample.part(slice(1, None, 2))
    whole = noted(done, "whole", lambda: [judge(model, choosing), judge(model, drawing)])
    removed = _cheapest_first(_alone(model, readers, choosing, whole[0], done, advance))
    curves = {
        name: _mean_curve(_removal_curve(model, readers, order, drawing, f"{name} {number}", done, advance)
                         for number, order in enumerate(orders))
        for name, orders in _orders_of(removed).items()
    }  # fmt: skip
    return Pruning(len(choosing), len(drawing), (whole[0].top1, whole[1].top1), tuple(removed), _SHARES, curves)


def work_of(model: nn.Module) -> int:
    """How many calls of ``advance`` with 1 a :func:`prune` from the beginning amounts to."""
    return sum(len(reader.weights) for reader in find_readers(model)) + (3 + _RANDOM_SEEDS) * len(_SHARES)


def _alone(
    model: nn.Module, readers: Sequence[Reader], sample: Sample, whole: Judged, done: Journal, advance: Callable[[int], None]
) -> list[Removed]:
    """Each connection by itself. A block's input is computed once, and of the block only what the reader changes again."""
    found: list[Removed] = []
    for number in range(1, len(blocks_of(model)) + 1):
        rest = Rest(model, number, sample)
        for reader in readers:
            if reader.block == number:
                each = noted(done, f"block {number}, {reader.name}", partial(rest.judge_without, reader))
                found += [_effect(reader, source, one, whole) for source, one in enumerate(each)]
                advance(len(each))
    return found


class Rest:
    """A network from one of its blocks on, fed with what that block reads. ``number``: of the block, from 1."""

    def __init__(self, model: nn.Module, number: int, sample: Sample) -> None:
        name, self.block = blocks_of(model)[number - 1]
        stages = list(model.features.named_children())  # type: ignore[union-attr]
        place = [each for each, _ in stages].index(name)
        self.before, self.after = ([stage for _, stage in part] for part in (stages[:place], stages[place + 1 :]))
        self.model, self.sample = model, sample

    @cached_property
    def inputs(self) -> list[torch.Tensor]:
        """Of the block, piece by piece."""
        with torch.inference_mode():
            return [_run(self.before, x) for x, _ in self.sample.pieces()]

    @torch.inference_mode()
    def judge_without(self, reader: Reader) -> list[Judged]:
        """Without each source of one reader in turn, on all images. What comes before the reader is run once."""
        answers: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in reader.weights]
        for x, (_, y) in zip(self.inputs, self.sample.pieces(), strict=True):
            before = _begun(self.block, x)
            for layer in layers_of(self.block)[: reader.place]:
                before.append(layer(before))
            for weight, found in zip(reader.weights, answers, strict=True):
                with without([weight]):
                    found.append((self.logits(list(before), reader.place), y))
        return [judged(each) for each in answers]

    def logits(self, outputs: list[torch.Tensor], place: int) -> torch.Tensor:
        """From the block's outputs before its layer at ``place``."""
        for layer in layers_of(self.block)[place:]:
            outputs.append(layer(outputs))
        return self.model.forward_head(_run(self.after, _ended(self.block, outputs)))  # type: ignore[operator]


def _run(stages: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    for stage in stages:
        x = stage(x)
    return x


def _begun(block: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The list that a block's layers read and add to."""
    return [block.opener(x)] if isinstance(block, DelugeBlock) else [x]


def _ended(block: nn.Module, outputs: list[torch.Tensor]) -> torch.Tensor:
    return block.aggregate(outputs) if isinstance(block, DelugeBlock) else torch.cat(outputs, 1)


def _effect(reader: Reader, source: int, one: Judged, whole: Judged) -> Removed:
    broken = int((whole.right & ~one.right).sum())
    mended = int((~whole.right & one.right).sum())
    p_value = float(binomtest(broken, broken + mended).pvalue) if broken + mended else 1.0
    lost, rise = whole.top1 - one.top1, one.loss - whole.loss
    weight = float(reader.weights[source].abs().double().mean())
    return Removed(reader.block, reader.name, source, weight, lost, rise, broken, mended, p_value)


def _cheapest_first(found: Sequence[Removed]) -> list[Removed]:
    """By how many images it breaks, then by how far it moves the loss. What it mends is chance: among hundreds of connections
    the ones that seem to gain most are those that change most, and their removal adds up to harm.
    """
    return sorted(found, key=lambda each: (each.broken, abs(each.loss_rise)))


def _orders_of(removed: Sequence[Removed]) -> dict[str, list[list[_Key]]]:
    """Names of orders, and for each one or several of all connections. ``removed``: cheapest first."""
    by_place = sorted(removed, key=lambda each: (each.block, each.target, each.source))
    by_chance = [np.random.default_rng(seed).permutation(len(by_place)) for seed in range(_RANDOM_SEEDS)]
    return {
        BROKEN: [_keys(removed)],
        LOST: [_keys(sorted(by_place, key=lambda each: (each.accuracy_lost, each.loss_rise)))],
        WEIGHT: [_keys(sorted(by_place, key=lambda each: each.mean_abs_weight))],
        RANDOM: [_keys([by_place[i] for i in order]) for order in by_chance],
    }


def _keys(removed: Iterable[Removed]) -> list[_Key]:
    return [(each.block, each.target, each.source) for each in removed]


def _removal_curve(
    model: nn.Module,
    readers: Sequence[Reader],
    order: Sequence[_Key],
    sample: Sample,
    name: str,
    done: Journal,
    advance: Callable[[int], None],
) -> list[float]:
    """Top-1, per cent, without the first of an order, for each of ``SHARES``."""
    views = {(reader.block, reader.name, source): weight for reader in readers for source, weight in enumerate(reader.weights)}
    top1 = []
    for share in _SHARES:
        first = [views[key] for key in order[: round(share * len(order))]]

        def judge_rest(first: list[torch.Tensor] = first) -> list[Judged]:
            with without(first):
                return [judge(model, sample)]

        top1.append(noted(done, f"{name}: {share:g}", judge_rest)[0].top1)
        advance(1)
    return top1


def _mean_curve(curves: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(np.mean(list(curves), axis=0).tolist())


def write_pruning_csv(pruning: Pruning, path: Path) -> None:
    """A line for each connection, cheapest first."""
    with atomic_file(path) as beside, output_errors(path), open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(PRUNING_COLUMNS)
        writer.writerows([getattr(each, name) for name in PRUNING_COLUMNS] for each in pruning.removed)
