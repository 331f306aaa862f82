"""Labels as text, and as targets to learn."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from densefeat.errors import UsageError

Task = Literal["single", "multi", "regression"]


@dataclass(frozen=True)
class Targets:
    """Of n rows. ``values``: single int64 ``(n,)``, multi bool ``(n, K)``, regression float64 ``(n,)``.

    ``classes``: K names, in the order of the values; none for regression.
    """

    task: Task
    classes: tuple[str, ...]
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> "Targets":
        """Those of some rows: positions, or a mask."""
        return replace(self, values=self.values[rows])


TASKS = ("auto", "single", "multi", "regression")
SEPARATOR = "|"
_MAX_MULTI = 2**31  # rows times classes


def sort_classes(names: Iterable[str]) -> list[str]:
    """Each once; in the order of torchvision's ImageFolder, but numbers by their value."""
    distinct = sorted(set(names))
    numbers = [parse_number(name) for name in distinct]
    return sorted(distinct, key=float) if None not in numbers else distinct


def parse_number(text: str) -> float | None:
    """None for text that is no finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def infer_task(texts: Sequence[str]) -> tuple[Task, str]:
    """The task that labels look like, and why, in words."""
    if any(SEPARATOR in text for text in texts):
        return "multi", f"some labels have a {SEPARATOR}"
    numbers = [parse_number(text) for text in texts]
    if all(number is not None for number in numbers):
        if any(number is not None and not number.is_integer() for number in numbers):
            return "regression", "all labels are numbers, not all whole"
        return "single", "all labels are whole numbers"
    return "single", "the labels are names"


def encode_labels(texts: Sequence[str], task: Task, paths: Sequence[str]) -> Targets:
    """Of labels as text. ``multi``: classes with ``|`` between them; a lone ``|`` is none of them.

    UsageError for fewer than two classes, and for a label of a regression that is no number; ``paths`` are to name it by.
    """
    if task == "regression":
        return Targets(task, (), _encode_numbers(texts, paths))
    if task == "multi":
        return encode_multi_labels(texts)
    classes = sort_classes(texts)
    _check_classes(classes)
    codes = {name: code for code, name in enumerate(classes)}
    return Targets(task, tuple(classes), np.fromiter((codes[text] for text in texts), np.int64, len(texts)))


def encode_multi_labels(texts: Sequence[str], known: Sequence[str] | None = None) -> Targets:
    """``known``: the classes, where that is settled; UsageError for another one, and without them for none at all."""
    pieces = [[piece for part in text.split(SEPARATOR) if (piece := part.strip())] for text in texts]
    classes = sort_classes(piece for some in pieces for piece in some)
    if known is None:
        _check_classes(classes)
    elif unknown := set(classes) - set(known):
        told = f"the {len(known)} classes that are known, {', '.join(known[:3])}, …"
        raise UsageError(f"label {min(unknown)!r} is none of {told}")
    else:
        classes = list(known)
    if len(texts) * len(classes) > _MAX_MULTI:
        raise UsageError(f"{len(classes):,} classes for {len(texts):,} rows are too many: leave out the rarest")
    codes = {name: code for code, name in enumerate(classes)}
    values = np.zeros((len(texts), len(classes)), bool)
    for row, some in enumerate(pieces):
        values[row, [codes[piece] for piece in some]] = True
    return Targets("multi", tuple(classes), values)


def _check_classes(classes: list[str]) -> None:
    if len(classes) < 2:
        told = f"all labels are {classes[0]!r}" if classes else "no label names a class"
        raise UsageError(f"{told}: there is nothing to tell apart; give labels of at least two classes")


def _encode_numbers(texts: Sequence[str], paths: Sequence[str]) -> np.ndarray:
    """float64 ``(n,)``."""
    numbers = [parse_number(text) for text in texts]
    for number, text, path in zip(numbers, texts, paths, strict=True):
        if number is None:
            raise UsageError(f"label {text!r} of {path!r} is no finite number: correct it, or leave it empty; or --task single")
    values = np.array(numbers, np.float64)
    if len(values) and values.min() == values.max():
        raise UsageError(f"all labels are {texts[0]}: there is nothing to predict")
    return values


def decode_labels(targets: Targets) -> list[str]:
    """The label of each row as text, as in a CSV."""
    if targets.task == "regression":
        return [f"{value:.7g}" for value in targets.values.tolist()]
    if targets.task == "single":
        return [targets.classes[code] for code in targets.values.tolist()]
    return [join_labels(row, targets.classes) for row in targets.values]


def join_labels(row: np.ndarray, classes: Sequence[str]) -> str:
    """Those of a bool ``(K,)``."""
    return SEPARATOR.join(classes[code] for code in np.flatnonzero(row).tolist()) or SEPARATOR
