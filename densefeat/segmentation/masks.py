"""The classes of masks: their names, and their numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densefeat.base import describe_error, parse_json, shorten_text
from densefeat.errors import UsageError
from densefeat.overlay import make_palette

IGNORED = 255  # in encoded masks, in place of a class
MAX_CLASSES = 255
_LARGEST = 2**16 - 1  # number of a class
_MAX_NAMES = 2**20  # bytes of a file of names
_SHOWN = 3  # names in messages


@dataclass(frozen=True)
class ClassTable:
    """The K classes of masks. ``values``: their numbers in masks, ascending; ``ignored``: the number that is left out."""

    values: tuple[int, ...]
    names: tuple[str, ...]
    ignored: int | None = None

    def encode(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Turn a mask's numbers into indices of the table, uint8 of the same shape, with IGNORED for pixels to leave out.

        Raises UsageError, with the file, for a number that is no class.
        """
        codes = np.full(_LARGEST + 2, -1, np.int16)
        codes[list(self.values)] = np.arange(len(self.values))
        if self.ignored is not None:
            codes[self.ignored] = IGNORED
        encoded = codes[np.clip(values, -1, _LARGEST)]
        if (encoded < 0).any():
            self._refuse(values[encoded < 0], path)
        return encoded.astype(np.uint8)

    def _refuse(self, values: np.ndarray, path: Path) -> None:
        numbers, counts = np.unique(values, return_counts=True)
        known = [f"{value} {name}" for value, name in zip(self.values[:_SHOWN], self.names[:_SHOWN], strict=True)]
        raise UsageError(
            f"mask {str(path)!r} has the number {numbers[0]} ({counts[0]:,} pixels), which is none of the"
            f" {len(self.values)} classes ({', '.join(known)}{', …' if len(self.values) > _SHOWN else ''}): name it in"
            f" --classes, or leave such pixels out by --ignore {numbers[0]}"
        )


def colour_classes(values: Sequence[int]) -> np.ndarray:
    """Return the colours of classes by their numbers, uint8 ``(K, 3)``: black, for none, is number 0 alone.

    They are the palette's colours of the numbers or, where one is beyond the palette, of the places in their order.
    """
    palette = make_palette(MAX_CLASSES + 1)
    if max(values) < len(palette):
        return palette[list(values)]
    first = int(min(values) > 0)
    return palette[first : first + len(values)]


def read_names(path: Path) -> dict[int, str]:
    """Read the names of classes by their numbers: a line each from 0, a JSON list, or a JSON object ``{"0": "name"}``.

    Raises UsageError for anything else, for a name that is empty or repeated, and for numbers that no mask can have.
    """
    try:
        if path.stat().st_size > _MAX_NAMES:
            raise UsageError(f"class names {str(path)!r}: {path.stat().st_size:,} bytes are no list of names")
        text = path.read_text(encoding="utf-8-sig")
        content = parse_json(text) if path.suffix.lower() == ".json" else text.rstrip().splitlines()
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        names = {int(number): name.strip() for number, name in pairs}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"class names {str(path)!r} cannot be read ({describe_error(error)}): give a name a line, a JSON list of names, or"
            ' a JSON object {"0": "name", …}'
        ) from error
    if "" in names.values() or len(set(names.values())) < len(names):
        (name, _), *_ = Counter(sorted(names.values(), key=bool)).most_common() if "" not in names.values() else [("", 0)]
        raise UsageError(f"class names {str(path)!r}: {name!r} is empty or names several classes")
    if not all(0 <= number <= _LARGEST for number in names):
        raise UsageError(f"class names {str(path)!r}: numbers must be 0 to {_LARGEST}")
    return dict(sorted(names.items()))


def make_table(names: Mapping[int, str] | None, found: Sequence[int], ignored: int | None) -> tuple[ClassTable, list[str]]:
    """Make the table of classes, and notes. ``names``: as given, or None; ``found``: the numbers that occur in masks.

    Raises UsageError for fewer than two classes, or more than 255.
    """
    notes = []
    if names is None:
        names = {number: str(number) for number in found}
        if 255 in names and ignored is None and len(names) > 2:
            notes.append("255 counts as a class, as masks have it: --ignore 255 leaves such pixels out")
    names = {number: name for number, name in names.items() if number != ignored}
    if not 2 <= len(names) <= MAX_CLASSES:
        problem = f"{len(names)} classes ({shorten_text(', '.join(names.values()))})"
        raise UsageError(f"{problem} to tell apart: masks need 2 to {MAX_CLASSES}")
    return ClassTable(tuple(names), tuple(names.values()), ignored), notes
