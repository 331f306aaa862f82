"""One ordered stream of images, whatever they come from: what an item is, and what a source must give."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from densefeat.images.decode import MAX_PIXELS, decode_pixels

if TYPE_CHECKING:
    import torch

_READ_OVER = 1000  # positions: it costs less to read over some than to enter a source again


@dataclass(frozen=True, slots=True)
class Decoded:
    """RGB pixels, with ``width`` and ``height`` of the whole upright image; ``x``, ``y``: a tile's place in it."""

    pixels: "Image.Image | torch.Tensor"
    width: int
    height: int
    x: int | None = None
    y: int | None = None


class Item(Protocol):
    """One position of the input. ``key``: unique and stable; bytes that are not UTF-8 are escaped as by os.fsdecode."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str | None: ...

    def decode(self, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS) -> Decoded | None:
        """Pixels; None for a tile without enough content. DecodeError with the step that failed and why."""


def _nowhere() -> None:
    """The ``path`` of what is no local file."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An item that is a whole encoded image. ``read``: its bytes, or DecodeError (stage ``read``).

    ``open``: where it is a file of its own, for reading parts of it; as ``read`` on errors. ``path``: of a local file that may
    be read, no link out of its folder, which is looked up at the call; None where ``read`` tells why not.
    """

    key: str
    label: str | None
    read: Callable[[], bytes]
    path: Callable[[], str | None] = _nowhere
    open: Callable[[], BinaryIO] | None = None

    def decode(self, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS) -> Decoded:
        pixels = decode_pixels(self.read(), decoder, max_pixels)
        width, height = pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[2], pixels.shape[1])
        return Decoded(pixels, width, height)


class Source(Protocol):
    """An ordered input, picklable. The same input gives the same keys in the same order on every machine."""

    @property
    def length(self) -> int | None:
        """None: known only at the end of the stream."""

    @property
    def labelled(self) -> bool:
        """Whether items have labels: a store then has the column, null where an item has none."""

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Positions ``start`` to ``stop``, fewer at the end of the input. What cannot be read fails in its item, not here."""

    def keys(self) -> pa.LargeBinaryArray:
        """Of all positions, encoded as by os.fsencode. UsageError where the length is not known."""

    def fingerprint(self) -> str:
        """Of the keys and labels in their order, and of the columns of a table: SHA-256 in hexadecimal."""


@dataclass(frozen=True)
class Selected:
    """The items of ``source`` at ``positions``, int64 ``(n,)``, in that order. Near ones are read together."""

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
    """A key with bytes that are not UTF-8 shown as escapes."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def fingerprint_of(*columns: pa.Array | None) -> str:
    """SHA-256 over the values of columns (keys, labels, …), independent of how arrow lays them out."""
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


def repeated(keys: pa.LargeBinaryArray) -> np.ndarray:
    """bool ``(len(keys),)``: whether an earlier position has the same key."""
    codes = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    mask = np.ones(len(codes), bool)
    mask[first] = False
    return mask
