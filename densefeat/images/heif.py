"""AVIF and HEIC: AVIF by Pillow, HEIC by pillow-heif, which is an extra."""

import io
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, features

from densefeat.errors import DecodeError
from densefeat.images.memory import MEMORY
from densefeat.images.orientation import find_orientation
from densefeat.images.samples import Samples

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_PIXEL_BYTES = {"AVIF": 22, "HEIC": 16}
_COPIES = 2  # of the file, by the libraries


@dataclass(frozen=True)
class Heif:
    """An image that a library has opened. ``image``: of Pillow or pillow-heif; its modes have the same names."""

    format: str
    image: Any = field(repr=False)
    orientation: int
    several: bool

    @property
    def width(self) -> int:
        return self.image.size[0]

    @property
    def height(self) -> int:
        return self.image.size[1]

    def count_bytes(self) -> int:
        return self.width * self.height * _PIXEL_BYTES[self.format]

    def decode(self) -> tuple[np.ndarray, Samples]:
        """Decode to samples of 8 bits, or grey of 16, to which fewer are scaled."""
        values = np.atleast_3d(np.asarray(self.image))
        height, width, count = values.shape
        if (width, height) != (self.width, self.height):
            raise DecodeError(f"{width}×{height} pixels in place of {self.width}×{self.height}")
        return values, Samples(
            "grey" if count < 3 else "rgb",
            8 * values.itemsize,
            alpha=count - 1 if count in (2, 4) else None,
            premultiplied=self.image.mode.endswith("a"),
            declared=(0, 2 ** (8 * values.itemsize) - 1),
            icc=self.image.info.get("icc_profile"),
        )


def _list_brands(head: bytes) -> set[bytes]:
    """List the brands of an ISO media file, as far as its first bytes have them."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4]), len(head))
    return {head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))}


def is_avif(head: bytes) -> bool:
    """Check for an AVIF file by its first bytes."""
    return bool(_list_brands(head) & _AVIF_BRANDS)


def is_heic(head: bytes) -> bool:
    """Check for a HEIC file by its first bytes, where it is no AVIF."""
    return bool(_list_brands(head) & _HEIC_BRANDS)


def read_avif(file: BinaryIO, with_pixels: bool = True) -> Heif:  # noqa: ARG001  (they are decoded later)
    """Open an AVIF. Pillow says by its orientation how it is turned and mirrored."""
    if not features.check("avif"):
        raise DecodeError("AVIF is read by Pillow 11.3 or newer: pip install -U pillow")
    _claim_copies(file)
    opener, _ = Image.OPEN["AVIF"]
    image = opener(file, "")
    return Heif("AVIF", image, find_orientation(image.info), getattr(image, "n_frames", 1) > 1)


def read_heic(file: BinaryIO, with_pixels: bool = True) -> Heif:  # noqa: ARG001  (they are decoded later)
    """Open the primary image of a HEIC. The library turns it by its properties, which count, unlike EXIF."""
    try:
        import pillow_heif
    except ImportError as error:
        raise DecodeError("HEIC is read with pillow-heif: pip install 'densefeat[heif]'", "read") from error
    _claim_copies(file)
    images = pillow_heif.open_heif(file)
    return Heif("HEIC", images[images.primary_index], 1, len(images) > 1)


def _claim_copies(file: BinaryIO) -> None:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    MEMORY.claim(_COPIES * size, f"{size:,} bytes")
