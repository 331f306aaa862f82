"""One ordered stream of images, whatever they come from: what an item is, and what a source offers."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any, BinaryIO, NoReturn, Protocol

import numpy as np
import pyarrow as pa

from densefeat.base import printable
from densefeat.errors import DecodeError, UnknownRange
from densefeat.images.decode import DecodedImage, decode
from densefeat.images.folders import Folder
from densefeat.images.guards import MAX_PIXELS
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from densefeat.images.stamps import Stamps
from densefeat.images.tiff_pages import TiffIndex

_READ_OVER = 1000  # positions: reading past so many costs less than entering a source again
_CHUNK = 1024  # keys turned into Python strings at a time


class Item(Protocol):
    """An image or tile at one position of the input.

    ``key``: unique and stable; bytes that are not UTF-8 are escaped as by os.fsdecode.
    """

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str | None: ...

    def decode(
        self, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS, rule: PixelRule = PHOTOGRAPHS
    ) -> DecodedImage | None:
        """Decode the pixels; None for a tile without enough content.

        Raises DecodeError: the step that failed, and why; UnknownRange as :func:`densefeat.images.decode.decode` does.
        """


def _no_path() -> None:
    """Return None, as the ``path`` of an item that is not a file on this machine."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An item that is a whole encoded image.

    ``read`` returns its bytes, or raises DecodeError (stage ``read``). ``open`` opens a file for reading parts of it, with the
    same errors; None where the image is no file. ``path`` looks up the path of a file on this machine; it returns None where
    there is none, or where it must not be read. ``page``: which of the file's images it is, from 1; None: the first.
    """

    key: str
    label: str | None
    read: Callable[[], bytes]
    path: Callable[[], str | None] = _no_path
    open: Callable[[], BinaryIO] | None = None
    page: int | None = None

    def tables(self) -> TiffIndex | None:
        """Return where the pages of the file are, as far as that is known already."""
        return None

    def decode(self, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS, rule: PixelRule = PHOTOGRAPHS) -> DecodedImage:
        return decode(self.read(), decoder, max_pixels, rule)


def make_unreadable_item(key: str, label: str | None, reason: str, stage: str = "read") -> ImageItem:
    """Make an item of which it is known that it cannot be read."""
    return ImageItem(key, label, partial(_raise_error, reason, stage))


def _raise_error(reason: str, stage: str) -> NoReturn:
    raise DecodeError(reason, stage)


class Source(Protocol):
    """An ordered input, picklable. The same input gives the same keys in the same order on every machine."""

    @property
    def length(self) -> int | None:
        """The number of items; None where it is only known at the end of the stream."""

    @property
    def labelled(self) -> bool:
        """Whether items have labels: a store then has a column of them, null where an item has none."""

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Return the items at positions ``start`` to ``stop``, fewer at the end of the input. One that cannot be read raises
        its error when it is read, not here."""

    def keys(self) -> pa.LargeBinaryArray:
        """Return the keys of all positions, encoded as by os.fsencode. Raises UsageError where the length is not known."""

    def fingerprint(self) -> str:
        """Hash the keys and labels in their order, and the columns of a table: SHA-256 in hexadecimal."""


class Listing(Source, Protocol):
    """A source as the user named it, which also knows the files that it is read from.

    Attributes:
        left_out: What is in the input and no item, in words, such as "12 .pdf, 3 .psd"; empty where that is nothing.
    """

    @property
    def left_out(self) -> str: ...

    def stamps(self) -> Stamps:
        """Look at the files that the source is read from: by these stamps a later job notices that they have changed."""


class ImageReader(Protocol):
    """A reader of encoded images in any order; it may hold open files and rows, so each process makes its own."""

    def read(self, position: int) -> bytes:
        """Read the image at a position. Raises DecodeError (stage ``read``)."""


class RandomAccess(Source):
    """A source whose images can be read in any order, as training does. New kinds of input only override what they need."""

    left_out: str = ""  # as of a Listing

    def label_values(self) -> pa.LargeStringArray:
        """Return the label of each position, null where it has none."""
        raise NotImplementedError

    def class_names(self) -> list[str] | None:
        """Return the names of the classes in their order, where the input states them."""
        return None

    def key(self, position: int) -> str:
        return os.fsdecode(self.keys()[position].as_py())

    def stamps(self) -> Stamps:
        """Look at the files that the source is read from, as a :class:`Listing` does."""
        raise NotImplementedError

    def group_sizes(self) -> np.ndarray | None:
        """Return how many positions each group has, int64, where groups are read as a whole (Parquet's row groups)."""
        return None

    def reader(self) -> ImageReader:
        return _ItemReader(self)


@dataclass(frozen=True)
class _ItemReader:
    """A reader of images each of which has a place of its own: files, members of tar files, rows on this machine's disk."""

    source: Source

    def read(self, position: int) -> bytes:
        item = next(iter(self.source.items(position, position + 1)))
        assert isinstance(item, ImageItem)
        return item.read()


@dataclass(frozen=True)
class IndexedSource(RandomAccess):
    """A source whose keys, labels (None: no item has one) and known failures (by position) are all in memory."""

    folder: Folder
    names: pa.LargeBinaryArray = field(repr=False)
    labels: pa.Array | None = field(default=None, repr=False)
    failures: dict[int, str] = field(default_factory=dict, repr=False)
    left_out: str = field(default="", kw_only=True, repr=False)

    @property
    def length(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    def items(self, start: int, stop: int) -> Iterator[ImageItem]:
        for first in range(start, min(stop, self.length), _CHUNK):
            last = min(first + _CHUNK, stop)
            keys = self.names[first:last].to_pylist()
            labels = [None] * len(keys) if self.labels is None else self.labels[first:last].to_pylist()
            for position, (key, label) in enumerate(zip(map(os.fsdecode, keys), labels, strict=True), first):
                reason = self.failures.get(position)
                if reason is not None:
                    yield make_unreadable_item(key, label, reason)
                else:
                    yield self.item(position, key, label)

    def item(self, position: int, key: str, label: str | None) -> ImageItem:
        """Make the item at a position that has no known failure."""
        raise NotImplementedError

    def keys(self) -> pa.LargeBinaryArray:
        return self.names

    def label_values(self) -> pa.LargeStringArray:
        return pa.nulls(self.length, pa.large_string()) if self.labels is None else self.labels.cast(pa.large_string())

    def fingerprint(self) -> str:
        return hash_columns(self.names, self.labels)


class SequentialSource:
    """A source that costs something to enter: a range that begins where the last one ended resumes reading there.

    Subclasses define ``rows``.
    """

    left_out: str = ""  # as of a Listing

    def __init__(self) -> None:
        self._lock = Lock()
        self._rest: tuple[int, int, Iterator[ImageItem]] | None = None  # process, position, items from there on

    def rows(self, start: int) -> Iterator[ImageItem]:
        """Read the items from a position to the end."""
        raise NotImplementedError

    def items(self, start: int, stop: int) -> Iterator[ImageItem]:
        with self._lock:
            rest, self._rest = self._rest, None
        rows = rest[2] if rest is not None and rest[:2] == (os.getpid(), start) else self.rows(start)
        yield from islice(rows, max(stop - start, 0))
        with self._lock:
            self._rest = os.getpid(), max(start, stop), rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_rest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SequentialSource.__init__(self)
        self.__dict__.update(state)


@dataclass(frozen=True)
class SelectedSource:
    """The items of ``source`` at ``positions``, int64 ``(n,)``, in that order. Positions that are near are read together."""

    source: Source
    positions: np.ndarray

    @property
    def length(self) -> int:
        return len(self.positions)

    @property
    def labelled(self) -> bool:
        return self.source.labelled

    def items(self, start: int, stop: int) -> Iterator[Item]:
        positions = self.positions[start:stop]
        steps = np.diff(positions)
        for run in np.split(positions, np.flatnonzero((steps < 1) | (steps > _READ_OVER)) + 1):
            if len(run):
                wanted, first = set(run.tolist()), int(run[0])
                items = enumerate(self.source.items(first, int(run[-1]) + 1), first)
                yield from (item for position, item in items if position in wanted)

    def keys(self) -> pa.LargeBinaryArray:
        return self.source.keys().take(pa.array(self.positions))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint().encode() + self.positions.astype("<i8").tobytes()).hexdigest()


def printable_key(key: str) -> str:
    """Show bytes of a key that are not UTF-8 as escapes."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_image(error: UnknownRange, key: str) -> UnknownRange:
    """Return the error with the image that it is of."""
    return UnknownRange(f"image {printable(printable_key(key))}: {error}")


def printable_keys(keys: pa.LargeBinaryArray) -> pa.LargeStringArray:
    """Return keys in the form in which rows and failures of a store hold them."""
    try:
        return keys.cast(pa.large_string())
    except pa.ArrowInvalid:  # names that are not UTF-8
        return pa.array([printable_key(key.decode("utf-8", "surrogateescape")) for key in keys.to_pylist()], pa.large_string())


def hash_columns(*columns: pa.Array | None) -> str:
    """Hash the values of columns (keys, labels, …), however arrow lays them out: SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    for column in columns:
        if column is None:
            digest.update(b"-")
            continue
        digest.update(b"%d;" % len(column))
        for start in range(0, len(column), 65536):
            for value in column[start : start + 65536].to_pylist():
                data = value.encode() if isinstance(value, str) else value
                digest.update(b"~" if data is None else b"%d:%s" % (len(data), data))
    return digest.hexdigest()


def find_repeats(keys: pa.LargeBinaryArray) -> np.ndarray:
    """Mark each position whose key an earlier position has: bool ``(len(keys),)``."""
    codes = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    mask = np.ones(len(codes), bool)
    mask[first] = False
    return mask
