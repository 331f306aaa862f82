"""Remarks to the user, one line each, on what the rows do not show: files that are left out, and images without a label."""

import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from densefeat.base import printable
from densefeat.images.stream import IndexedSource, printable_key

_log = logging.getLogger(__name__)
_EXTENSION = re.compile(r"\.(?!\d+$)\w{1,8}")  # other endings are part of a name, such as of a version or a date
_KINDS_NAMED, _NAMES_NAMED = 8, 3  # in one line


class LeftOut:
    """The files of an input that are no items of it."""

    def __init__(self) -> None:
        self.others: Counter[str] = Counter()  # files that are not named as images, by extension
        self.hidden: set[str] = set()  # hidden images, and hidden folders with a slash at the end
        self.closed: set[str] = set()  # folders that are not entered, which training, unlike extract, would not show

    @classmethod
    def sum(cls, parts: Iterable["LeftOut"]) -> "LeftOut":
        """Gather what parts of one input leave out."""
        total = cls()
        for part in parts:
            total.others += part.others
            total.hidden |= part.hidden
            total.closed |= part.closed
        return total

    def add(self, name: str) -> None:
        """Count a file that is not named as an image."""
        extension = posixpath.splitext(name)[1].lower()
        self.others[extension if _EXTENSION.fullmatch(extension) else "without an extension"] += 1

    def warn(self, images: str) -> None:
        """Log one line if there is anything; ``images``: what the user named."""
        if text := self.describe():
            _log.warning("images %r: left out: %s", images, text)

    def but(self) -> str:
        """Return the end of a sentence that says what there is instead of images."""
        text = self.describe()
        return text and f", but {text}"

    def describe(self) -> str:
        """Count the files of each kind in words; empty where there are none."""
        kinds = sorted(self.others.items(), key=lambda kind: (-kind[1], kind[0]))
        counts = [f"{count:,} {extension}" for extension, count in kinds[:_KINDS_NAMED]]
        if rest := sum(count for _, count in kinds[_KINDS_NAMED:]):
            counts.append(f"{rest:,} of other kinds")
        for names, what in ((self.hidden, "hidden"), (self.closed, "not entered")):
            if names:
                some = [printable(name) for name in sorted(names)[:_NAMES_NAMED]]
                counts.append(f"{len(names):,} {what} ({', '.join(some)}{', …' if len(names) > len(some) else ''})")
        return ", ".join(counts)


def warn_of_missing_labels(images: str, source: IndexedSource, meaning: str) -> None:
    """Log how many images have no label, if any; ``images``: what the user named; ``meaning``: what a label is."""
    without = np.flatnonzero(source.label_values().is_null().to_numpy(zero_copy_only=False))
    without = np.setdiff1d(without, np.array(list(source.failures), np.int64))
    total = source.length - len(source.failures)
    if len(without):
        count = "no image has a label" if len(without) == total else f"{len(without):,} of {total:,} images have no label"
        example = printable_key(source.key(int(without[0])))
        _log.warning("images %r: %s, such as %r: a label is %s", images, count, example, meaning)
