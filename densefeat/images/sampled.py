"""The formats whose decoders give samples: how each is known by a file's first bytes, and what reads its header."""

from collections.abc import Callable
from typing import BinaryIO, Protocol

import numpy as np

from densefeat.images import heif, jp2, netpbm, png
from densefeat.images.dicom_header import HEAD_BYTES
from densefeat.images.samples import Samples

__all__ = ["HEAD_BYTES", "Reader", "SampledImage", "find_reader"]


class SampledImage(Protocol):
    """An image whose header has been read.

    Attributes:
        format: Its name for people.
        width, height: As it is stored.
        orientation: How it is turned upright, 1 to 8 as in EXIF.
        several: The file has more images or frames, of which this is the first.
    """

    @property
    def format(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def orientation(self) -> int: ...
    @property
    def several(self) -> bool: ...

    def count_bytes(self) -> int:
        """Count the bytes of memory that decoding takes."""

    def decode(self) -> tuple[np.ndarray, Samples]:
        """Decode to samples ``(height, width, n)``, and what they mean."""


class Reader(Protocol):
    """A reader of headers. It raises DecodeError for one that is damaged."""

    def __call__(self, file: BinaryIO, with_pixels: bool = True) -> SampledImage:
        """Read an image up to its pixels; without pixels it cannot be decoded afterwards, and the file is read in parts."""


_READERS: tuple[tuple[Callable[[bytes], bool], Reader], ...] = (
    (lambda head: head.startswith(png.MAGIC), png.read_png),
    (jp2.is_jpeg_2000, jp2.read_jp2),
    (netpbm.is_netpbm, netpbm.read_netpbm),
    (heif.is_avif, heif.read_avif),
    (heif.is_heic, heif.read_heic),
)


def find_reader(head: bytes) -> Reader | None:
    """Find the reader of a file that begins with these bytes; None where its format is none of these."""
    return next((read for is_this, read in _READERS if is_this(head)), None)
