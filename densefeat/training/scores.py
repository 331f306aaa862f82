"""Top-1, top-5 and loss over a split, exact for any number of ranks."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from densefeat.training.device_data import Part
from densefeat.training.world import World


@dataclass(frozen=True)
class Scores:
    """``counts``: float64 ``(3, C)``: images, top-1 hits and top-5 hits of each class; ``loss``: the sum over images."""

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

    def to_json(self) -> dict[str, Any]:
        mean = self.loss / max(self.images, 1)
        return {"images": self.images, "top1": round(self.top1, 4), "top5": round(self.top5, 4), "loss": round(mean, 5)}


@torch.inference_mode()
def score(
    model: nn.Module,
    batches: Iterable[Part],
    num_classes: int,
    world: World,
    autocast: AbstractContextManager[Any] | None = None,
) -> Scores:
    """Of a model in eval mode (and left in it) over this rank's batches, summed over all ranks: no image counts twice.

    Images with label -1 do not count. Where there are fewer than five classes, top-5 counts all of them.
    """
    model.eval()
    counts = torch.zeros(3, num_classes, dtype=torch.float64, device=world.device)
    loss = torch.zeros(1, dtype=torch.float64, device=world.device)
    for x, y in batches:
        with autocast or nullcontext():
            logits = model(x)
        logits = logits.float() if logits.dtype != torch.float64 else logits
        loss += F.cross_entropy(logits, y, ignore_index=-1, reduction="sum")
        add_hits(counts, logits, y)
    return Scores(world.total(counts), float(world.total(loss)))


def add_hits(counts: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> None:
    valid = y >= 0
    y = y.clamp(min=0)
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
    for row, values in enumerate((valid, hits[:, 0] & valid, hits.any(1) & valid)):
        counts[row].index_add_(0, y, values.to(counts.dtype))
