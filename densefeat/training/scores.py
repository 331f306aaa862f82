"""Scores of a network on a split, exact for any number of ranks: with one class an image, or several labels."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from densefeat.labels import Targets, count_classes, describe_chance
from densefeat.training.device_data import MicroBatch
from densefeat.training.world import World


@dataclass(frozen=True)
class Scores:
    """Scores with one class an image.

    ``counts``: float64 ``(3, C)``: images, top-1 hits and top-5 hits of each class; ``loss``: the sum over images.
    """

    counts: torch.Tensor
    loss: float

    @property
    def images(self) -> int:
        return int(self.counts[0].sum())

    @property
    def top1(self) -> float:
        """In per cent."""
        return 100 * float(self.counts[1].sum()) / max(self.images, 1)

    @property
    def top5(self) -> float:
        """In per cent."""
        return 100 * float(self.counts[2].sum()) / max(self.images, 1)

    @property
    def balanced(self) -> float:
        """The mean of the classes' top-1 accuracies, in per cent, over the classes that have images."""
        images, hits = self.counts[:2, self.counts[0] > 0]
        return 100 * float((hits / images).mean()) if len(images) else 0.0

    @property
    def main(self) -> float:
        """The score that weights are selected by."""
        return self.top1

    def summary(self) -> str:
        return f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %" if len(self.counts[0]) > 5 else f"top-1 {self.top1:.2f} %"

    @property
    def remark(self) -> str | None:
        """A sentence if the scores are no better than guessing."""
        shares = {"top1": self.top1, "balanced_accuracy": self.balanced}
        return describe_chance(shares, self.counts[0].cpu().numpy(), self.images)

    def to_json(self) -> dict[str, Any]:
        mean = self.loss / max(self.images, 1)
        shares = {"top1": self.top1, "top5": self.top5, "balanced_accuracy": self.balanced}
        return {"images": self.images, **{name: round(value, 4) for name, value in shares.items()}, "loss": round(mean, 5)}


@dataclass(frozen=True)
class LabelScores:
    """Scores with several labels an image.

    ``targets`` bool and ``logits`` float32, ``(n, C)``; ``loss``: the sum over images.
    """

    targets: Targets
    logits: np.ndarray
    loss: float

    @property
    def images(self) -> int:
        return len(self.targets)

    @cached_property
    def values(self) -> dict[str, float | None]:
        from densefeat.probing import compute_metrics  # needs scipy, which training on one class an image does without

        return compute_metrics(self.targets, self.logits) if self.images else {"map": None}

    @property
    def main(self) -> float:
        """Mean average precision, in per cent: the score that weights are selected by."""
        return self.values["map"] or 0.0

    def summary(self) -> str:
        return f"mAP {self.main:.2f} %"

    @property
    def remark(self) -> str | None:
        """A sentence if the scores are no better than guessing."""
        return describe_chance(self.values, count_classes(self.targets), self.images)

    def to_json(self) -> dict[str, Any]:
        values = {name: None if value is None else round(value, 4) for name, value in self.values.items()}
        return {"images": self.images, **values, "loss": round(self.loss / max(self.images, 1), 5)}


AnyScores = Scores | LabelScores


@torch.inference_mode()
def score(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    num_classes: int,
    world: World,
    autocast: AbstractContextManager[Any] | None = None,
) -> Scores:
    """Score a network on this rank's batches, and sum over all ranks; leaves the network in eval mode.

    Images with label -1 do not count. With fewer than five classes, top-5 counts all of them.
    """
    counts = torch.zeros(3, num_classes, dtype=torch.float64, device=world.device)
    loss = torch.zeros(1, dtype=torch.float64, device=world.device)
    for logits, y in _forward(model, batches, autocast):
        loss += F.cross_entropy(logits, y, ignore_index=-1, reduction="sum")
        _add_hits(counts, logits, y)
    return Scores(world.sum(counts), float(world.sum(loss)))


@torch.inference_mode()
def score_labels(
    model: nn.Module,
    batches: Iterable[MicroBatch],
    classes: list[str],
    world: World,
    autocast: AbstractContextManager[Any] | None = None,
) -> LabelScores:
    """Score as :func:`score` does, with targets ``(n, C)`` of 0 or 1; images with a row of -1 do not count."""
    loss = torch.zeros(1, dtype=torch.float64, device=world.device)
    all_logits, all_targets = [np.empty((0, len(classes)), np.float32)], [np.empty((0, len(classes)), bool)]
    for logits, y in _forward(model, batches, autocast):
        labelled = y[:, 0] >= 0
        logits, y = logits[labelled], y[labelled]
        loss += F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="sum") / len(classes)
        all_logits.append(logits.float().cpu().numpy())
        all_targets.append(y.cpu().numpy() > 0)
    ranks = world.gather_objects((np.concatenate(all_logits), np.concatenate(all_targets)))
    logits_array, targets_array = (np.concatenate([arrays[i] for arrays in ranks]) for i in (0, 1))
    return LabelScores(Targets("multi", tuple(classes), targets_array), logits_array, float(world.sum(loss)))


def _forward(
    model: nn.Module, batches: Iterable[MicroBatch], autocast: AbstractContextManager[Any] | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield logits and targets, batch by batch."""
    model.eval()
    for x, y in batches:
        with autocast or nullcontext():
            logits = model(x)
        yield logits.float() if logits.dtype != torch.float64 else logits, y


def _add_hits(counts: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> None:
    valid = y >= 0
    y = y.clamp(min=0)
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
    for row, values in enumerate((valid, hits[:, 0] & valid, hits.any(1) & valid)):
        counts[row].index_add_(0, y, values.to(counts.dtype))
