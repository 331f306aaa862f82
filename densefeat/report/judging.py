"""Which images of a sample a network gets right, also with some of its weights at zero, and only once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from densefeat.report.journal import Journal
from densefeat.report.sample import Sample


@dataclass(frozen=True)
class Judged:
    """``right``: bool ``(N,)``, which images are classified rightly; ``loss``: their mean cross-entropy."""

    right: np.ndarray
    loss: float

    @classmethod
    def of_json(cls, row: dict[str, Any]) -> "Judged":
        bits = np.frombuffer(bytes.fromhex(row["right"]), np.uint8)
        return cls(np.unpackbits(bits, count=row["images"]).astype(bool), row["loss"])

    def to_json(self) -> dict[str, Any]:
        return {"right": np.packbits(self.right).tobytes().hex(), "images": len(self.right), "loss": self.loss}

    @property
    def top1(self) -> float:
        """In per cent."""
        return 100 * float(self.right.mean())


@torch.inference_mode()
def judge(model: nn.Module, sample: Sample) -> Judged:
    return judged((model(x), y) for x, y in sample.pieces())


def judged(answers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Judged:
    """Of logits ``(n, C)`` and labels ``(n,)``, piece by piece."""
    right, loss = [], 0.0
    for logits, y in answers:
        right.append((logits.argmax(1) == y).cpu().numpy())
        loss += float(F.cross_entropy(logits.double(), y, reduction="sum"))
    every = np.concatenate(right)
    return Judged(every, loss / len(every))


@contextmanager
def without(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """These views of parameters at zero; on leaving they are as they were."""
    before = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.zero_()
        yield
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)


def noted(done: Journal, key: str, work: Callable[[], list[Judged]]) -> list[Judged]:
    """What was judged before under this key, or else what ``work`` judges now."""
    if key not in done:
        done.note(key, [one.to_json() for one in work()])
    return [Judged.of_json(row) for row in done[key]]
