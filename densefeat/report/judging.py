"""Judgements: which images a network classifies correctly, with all its weights or with some set to zero."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from densefeat.base import atomic_file, parse_json
from densefeat.errors import UsageError
from densefeat.report.sample import Sample

_MAX_LINE = 4096  # characters of a journal's first line


class Journal:
    """The results so far of long work that can be interrupted, by key, in a file of JSON lines that is always complete.

    The file's first line is ``identity``, JSON that says what the work is on. With ``path`` None, results stay in memory.
    Raises UsageError if the file belongs to other work, or is not a journal.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.results: dict[str, Any] = {}
        if path is not None and path.exists():
            self.results = self._read(path)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            identity, *lines = (parse_json(line) for line in path.read_text(encoding="utf-8").splitlines())
            results = {line["key"]: line["result"] for line in lines}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UsageError(
                f"{str(path)!r} exists and is not a journal to resume from: remove it, or name another --out"
            ) from error
        if identity != self.identity:
            other = identity if isinstance(identity, dict) else {}
            names = ", ".join(name for name in other | self.identity if other.get(name) != self.identity.get(name))
            raise UsageError(f"{str(path)!r} belongs to other work ({names} differ): remove it, or name another --out")
        return results

    def __contains__(self, key: str) -> bool:
        return key in self.results

    def __getitem__(self, key: str) -> Any:
        return self.results[key]

    def add(self, key: str, result: Any) -> None:
        """Record a result. Raises OutputError if the file cannot be written."""
        self.results[key] = result
        if self.path is None:
            return
        lines = [self.identity, *({"key": name, "result": value} for name, value in self.results.items())]
        with atomic_file(self.path) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def is_journal(path: Path) -> bool:
    """Recognize the journal of a pruning, of whatever network."""
    try:
        with open(path, encoding="utf-8") as file:
            identity = parse_json(file.readline(_MAX_LINE))
    except (OSError, ValueError):
        return False
    return isinstance(identity, dict) and "weights" in identity


@dataclass(frozen=True)
class Judgement:
    """The outcome for N images. ``right``: bool ``(N,)``, those classified correctly; ``loss``: the mean cross-entropy."""

    right: np.ndarray
    loss: float

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Judgement":
        bits = np.frombuffer(bytes.fromhex(row["right"]), np.uint8)
        return cls(np.unpackbits(bits, count=row["images"]).astype(bool), row["loss"])

    def to_json(self) -> dict[str, Any]:
        return {"right": np.packbits(self.right).tobytes().hex(), "images": len(self.right), "loss": self.loss}

    @property
    def top1(self) -> float:
        """The accuracy in per cent."""
        return 100 * float(self.right.mean())


@torch.inference_mode()
def judge(model: nn.Module, sample: Sample) -> Judgement:
    return judge_logits((model(x), y) for x, y in sample.pieces())


def judge_logits(answers: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Judgement:
    """Judge pairs of logits ``(n, C)`` and labels ``(n,)``."""
    right, loss = [], 0.0
    for logits, y in answers:
        right.append((logits.argmax(1) == y).cpu().numpy())
        loss += float(F.cross_entropy(logits.double(), y, reduction="sum"))
    all_right = np.concatenate(right)
    return Judgement(all_right, loss / len(all_right))


@contextmanager
def zero_weights(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Set views of parameters to zero; on leaving, restore them."""
    before = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.zero_()
        yield
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)


def judge_once(journal: Journal, key: str, work: Callable[[], list[Judgement]]) -> list[Judgement]:
    """Return the judgements that the journal has under a key, or make and record them."""
    if key not in journal:
        journal.add(key, [judgement.to_json() for judgement in work()])
    return [Judgement.from_json(row) for row in journal[key]]
