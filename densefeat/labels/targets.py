"""Labels as text, and the targets that heads learn from them; this file alone decides what a label means."""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from densefeat.base import shorten_text
from densefeat.errors import UsageError

Task = Literal["single", "multi", "regression"]
TASKS = ("auto", "single", "multi", "regression")
SEPARATOR = "|"
_MAX_MULTI = 2**31  # rows times classes
_MISSING = {"na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "none", "nil"}  # what programs write for a missing value
_MOST = 0.9  # a share of labels
_ZEROS = re.compile(r"\.0*$")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")  # float() reads 1_0 and ٣ as numbers, too


@dataclass(frozen=True)
class Targets:
    """The targets of n rows: what a head should predict for each.

    ``values``: single int64 ``(n,)``, positions in ``classes``; multi bool ``(n, K)``; regression float64 ``(n,)``.
    ``classes``: K names; empty for regression.
    """

    task: Task
    classes: tuple[str, ...]
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> "Targets":
        """Select rows, by their positions or by a mask."""
        return replace(self, values=self.values[rows])


def infer_task(texts: Sequence[str], folders: bool = False) -> tuple[Task, str]:
    """Decide which task labels are for, and say why in words.

    ``folders``: the labels are names of folders, in which ``|`` is a letter like any other. A few labels that are no numbers
    do not make classes of numbers that are not whole: a regression then names the first of them.
    """
    if not folders and any(SEPARATOR in text for text in texts):
        return "multi", f"some labels have a {SEPARATOR}"
    numbers = [number for text in texts if (number := parse_number(text)) is not None]
    if len(numbers) == len(texts) and all(map(float.is_integer, numbers)):
        return "single", "all labels are whole numbers"
    if not all(map(float.is_integer, numbers)) and len(numbers) >= _MOST * sum(not _is_missing(text) for text in texts):
        return "regression", f"{'all' if len(numbers) == len(texts) else 'nearly all'} labels are numbers, not all whole"
    return "single", "the labels are names"


def _is_missing(text: str) -> bool:
    """Check for a word that programs write for a missing value, such as NA. A class may have such a name."""
    return text.lower() in _MISSING


def describe_missing(classes: Iterable[str]) -> list[str]:
    """Return a remark on classes that may stand for missing values, if there are any."""
    names = [name for name in classes if _is_missing(name)]
    if not names:
        return []
    verb = "is a class" if len(names) == 1 else "are classes"
    return [f"{', '.join(map(repr, names))} {verb}: where a label is missing, leave the field empty"]


def match_numbers(names: Collection[str], known: Collection[str] = ()) -> dict[str, str]:
    """Map names of one whole number, such as 1 and 1.0, to a single name: those that change, with their new names.

    Tables with a missing value write whole numbers as 1.0. ``known``: the classes, where they are fixed; else the shortest form
    is taken, and only where a number is written in two ways. Nothing changes where a name is no whole number.
    """
    numbers = [parse_number(name) for name in {*names, *known}]
    if not all(number is not None and number.is_integer() for number in numbers):
        return {}
    forms: dict[str, set[str]] = {}
    for name in known or names:
        forms.setdefault(_ZEROS.sub("", name), set()).add(name)
    changed = {}
    for name in set(names) - set(known):
        short = _ZEROS.sub("", name)
        if known and len(forms.get(short, ())) == 1:
            changed[name] = next(iter(forms[short]))
        elif not known and len(forms[short]) > 1 and name != short:
            changed[name] = short
    return changed


def encode_labels(texts: Sequence[str], task: Task, paths: Sequence[str]) -> Targets:
    """Turn labels as text into targets. Multi-label: classes separated by ``|``; a lone ``|`` means none of them.

    ``paths`` are for messages. Raises UsageError for fewer than two classes, and for a label that a regression cannot read as a
    number.
    """
    if task == "regression":
        return Targets(task, (), _encode_numbers(texts, paths))
    if task == "multi":
        return encode_multi_labels(texts)
    changed = match_numbers(set(texts))
    texts = [changed.get(text, text) for text in texts]
    classes = sort_classes(texts)
    _check_classes(classes)
    codes = {name: code for code, name in enumerate(classes)}
    return Targets(task, tuple(classes), np.fromiter((codes[text] for text in texts), np.int64, len(texts)))


def encode_multi_labels(texts: Sequence[str], known: Sequence[str] | None = None) -> Targets:
    """Turn labels that name any number of classes into targets.

    ``known``: the classes, where they are fixed; None: those of the labels. Raises UsageError for a class that is not among
    the known ones, or for fewer than two classes where none are known.
    """
    rows = [split_label(text) for text in texts]
    classes = sort_classes(name for names in rows for name in names)
    if known is None:
        _check_classes(classes)
    elif unknown := set(classes) - set(known):
        raise UsageError(
            f"label {min(unknown)!r} is not one of the {len(known)} known classes, {shorten_text(', '.join(known[:3]))}, …"
        )
    else:
        classes = list(known)
    if len(texts) * len(classes) > _MAX_MULTI:
        raise UsageError(f"{len(classes):,} classes for {len(texts):,} rows are too many: leave out the rarest")
    codes = {name: code for code, name in enumerate(classes)}
    values = np.zeros((len(texts), len(classes)), bool)
    for row, names in enumerate(rows):
        values[row, [codes[name] for name in names]] = True
    return Targets("multi", tuple(classes), values)


def split_label(text: str) -> list[str]:
    """List the classes that a multi-label ``a|b`` names."""
    return [name for part in text.split(SEPARATOR) if (name := part.strip())]


def _check_classes(classes: list[str]) -> None:
    if len(classes) < 2:
        problem = f"all labels are {classes[0]!r}" if classes else "no label names a class"
        raise UsageError(f"{problem}: labels of at least two classes are needed")


def _encode_numbers(texts: Sequence[str], paths: Sequence[str]) -> np.ndarray:
    """Parse labels as numbers, float64 ``(n,)``; ``paths`` are for messages."""
    numbers = [parse_number(text) for text in texts]
    for number, text, path in zip(numbers, texts, paths, strict=True):
        if number is None:
            raise UsageError(
                f"label {text!r} of {path!r} is not a finite number: correct it or leave it empty, or use --task single"
            )
    values = np.array(numbers, np.float64)
    if len(values) and values.min() == values.max():
        raise UsageError(f"all labels are {texts[0]}: a regression needs at least two different numbers")
    return values


def decode_labels(targets: Targets) -> list[str]:
    """Turn targets back into labels as text, in the form that a CSV file has."""
    if targets.task == "regression":
        return [f"{value:.7g}" for value in targets.values.tolist()]
    if targets.task == "single":
        return [targets.classes[code] for code in targets.values.tolist()]
    return [join_labels(row, targets.classes) for row in targets.values]


def join_labels(row: np.ndarray, classes: Sequence[str]) -> str:
    """Write the classes that are True in a bool ``(K,)`` as one label."""
    return SEPARATOR.join(classes[code] for code in np.flatnonzero(row).tolist()) or SEPARATOR


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort distinct names as torchvision's ImageFolder does; but where all are numbers, by their value."""
    distinct = sorted(set(names))
    numbers = [parse_number(name) for name in distinct]
    return sorted(distinct, key=float) if None not in numbers else distinct


def parse_number(text: str) -> float | None:
    """Read a finite number; None where the text is not one."""
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def absent_classes(targets: Targets) -> list[str]:
    """List the classes that none of the rows has."""
    if targets.task == "regression":
        return []
    counts = np.bincount(targets.values, minlength=len(targets.classes)) if targets.task == "single" else targets.values.sum(0)
    return [name for name, count in zip(targets.classes, counts, strict=True) if count == 0]
