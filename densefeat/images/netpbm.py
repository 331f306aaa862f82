"""PBM, PGM, PPM and PAM files: a header in text, which declares the white, and numbers in bytes or in text."""

import io
import re
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.samples import Samples

_HEADER = re.compile(rb"P[1-7](\s|#)")
_TOKEN = re.compile(rb"(?:\s|#[^\n]*\n)*([^\s#]+)")
_COMMENT = re.compile(rb"#[^\n]*")
_MAX_HEADER_BYTES = 2**16
_MAX_TEXT_BYTES = 2**26  # of numbers, which take seconds
_RGB = 8  # bytes a pixel, as arrays and an image
_COPIES_OF_TEXT = 6  # without remarks, and as numbers of 8 bytes
_NAMES = {"1": "PBM", "4": "PBM", "2": "PGM", "5": "PGM", "3": "PPM", "6": "PPM", "7": "PAM"}
_TUPLES = {  # of PAM: colours, and whether transparency follows
    "BLACKANDWHITE": ("grey", False),
    "GRAYSCALE": ("grey", False),
    "RGB": ("rgb", False),
    "BLACKANDWHITE_ALPHA": ("grey", True),
    "GRAYSCALE_ALPHA": ("grey", True),
    "RGB_ALPHA": ("rgb", True),
}


@dataclass(frozen=True)
class Netpbm:
    """The header of a Netpbm file.

    Attributes:
        kind: The digit behind the P.
        channels: Samples a pixel.
        white: The largest value.
        raster: What follows the header.
    """

    kind: str
    width: int
    height: int
    channels: int
    white: int
    colours: str
    alpha: bool
    several: bool
    raster: bytes
    orientation: int = 1

    @property
    def format(self) -> str:
        return _NAMES[self.kind]

    @property
    def is_text(self) -> bool:
        return self.kind in "123"

    @property
    def sample_bytes(self) -> int:
        return 1 + (self.white > 255)

    @property
    def raster_bytes(self) -> int:
        """Bytes of the image's pixels; of text at least."""
        if self.kind == "4":
            return -(-self.width // 8) * self.height
        return self.width * self.height * self.channels * self.sample_bytes

    def count_bytes(self) -> int:
        size = self.width * self.height * (2 * self.channels * self.sample_bytes + _RGB)
        return size + (_COPIES_OF_TEXT * len(self.raster) if self.is_text else 0)

    def decode(self) -> tuple[np.ndarray, Samples]:
        """Decode to samples. Raises DecodeError where numbers are missing, or above the declared white."""
        if self.kind == "1":
            values = self._read_digits()
        elif self.is_text:
            values = self._read_numbers()
        else:
            values = self._read_bytes()
        if (brightest := int(values.max(initial=0))) > self.white:
            raise DecodeError(f"samples of {brightest:,}, but the file declares that white is {self.white:,}")
        declared = None if self.white == 2**16 - 1 else (0.0, float(self.white))  # which is only what 16 bits can hold
        return values.reshape(self.height, self.width, self.channels), Samples(
            self.colours,
            8 * values.itemsize,
            inverted=self.kind in "14",
            alpha=self.channels - 1 if self.alpha else None,
            declared=declared,
        )

    def _read_bytes(self) -> np.ndarray:
        if len(self.raster) < self.raster_bytes:
            raise DecodeError(f"truncated: {len(self.raster):,} bytes of pixels where {self.raster_bytes:,} are needed")
        if self.kind == "4":
            rows = np.frombuffer(self.raster, np.uint8, self.raster_bytes).reshape(self.height, -1)
            return np.unpackbits(rows, axis=1, count=self.width)
        count = self.raster_bytes // self.sample_bytes
        return np.frombuffer(self.raster, f">u{self.sample_bytes}", count).astype(f"u{self.sample_bytes}")

    def _read_digits(self) -> np.ndarray:
        """Read bits as digits, between which there may be blanks."""
        digits = np.frombuffer(self._read_text().translate(None, b" \t\n\v\f\r"), np.uint8)[: self.raster_bytes]
        self._check_count(len(digits))
        return digits - np.uint8(ord("0"))  # others become large

    def _read_numbers(self) -> np.ndarray:
        try:
            values = np.fromstring(self._read_text(), np.int64, sep=" ")  # told a count, it would fill up with zeros
        except ValueError as error:
            raise DecodeError(f"damaged: the pixels of this {self.format} file are not all numbers") from error
        self._check_count(len(values))
        values = values[: self.width * self.height * self.channels]
        if values.min() < 0 or values.max() > self.white:
            raise DecodeError(f"samples from {values.min():,} to {values.max():,}, but white is {self.white:,}")
        return values.astype(f"u{self.sample_bytes}")

    def _read_text(self) -> bytes:
        if len(self.raster) > _MAX_TEXT_BYTES:
            raise DecodeError(
                f"{len(self.raster):,} bytes of numbers in text, more than the limit of {_MAX_TEXT_BYTES:,}: write it in binary"
            )
        text = self.raster.partition(b"P")[0]  # another image may follow
        return _COMMENT.sub(b"", text) if b"#" in text else text

    def _check_count(self, count: int) -> None:
        needed = self.width * self.height * self.channels
        if count < needed:
            raise DecodeError(f"truncated or damaged: {count:,} numbers where {needed:,} are needed")


def is_netpbm(head: bytes) -> bool:
    """Check for a Netpbm file by its first bytes."""
    return _HEADER.match(head) is not None


def read_netpbm(file: BinaryIO, with_pixels: bool = True) -> Netpbm:
    """Read a header. Raises DecodeError where it is damaged."""
    head = file.read(_MAX_HEADER_BYTES)
    kind = head[1:2].decode()
    try:
        if kind == "7":
            place, width, height, channels, white, colours, alpha = _read_pam(head)
        else:
            place, (width, height, white) = _read_numbers(head, 2 if kind in "14" else 3)
            channels, colours, alpha = (3, "rgb", False) if kind in "36" else (1, "grey", False)
    except (ValueError, KeyError, IndexError) as error:
        raise DecodeError(f"damaged: the header of this {_NAMES[kind]} file, {head[:40]!r}") from error
    if min(width, height, channels) < 1 or not 0 < white < 2**16:
        raise DecodeError(f"{width}×{height} pixels of {channels} samples with {white:,} as white")
    image = Netpbm(kind, width, height, channels, white, colours, alpha, several=False, raster=b"")
    several = False
    if not image.is_text:
        file.seek(place + image.raster_bytes)
        several = file.read(1) == b"P"
    raster = b""
    if with_pixels:
        file.seek(place, io.SEEK_SET)
        raster = file.read()
    return Netpbm(kind, width, height, channels, white, colours, alpha, several, raster)


def _read_numbers(head: bytes, count: int) -> tuple[int, tuple[int, int, int]]:
    """Read width, height and white, which of two numbers is 1; return where the raster begins, behind one blank."""
    place, numbers = 2, []
    for _ in range(count):
        match = _TOKEN.match(head, place)
        if match is None:
            raise ValueError
        numbers.append(_read_number(match[1]))
        place = match.end()
    width, height, white = (*numbers, 1)[:3]
    return place + 1, (width, height, white)


def _read_pam(head: bytes) -> tuple[int, int, int, int, int, str, bool]:
    end = head.index(b"ENDHDR")
    lines = [line.split(None, 1) for line in _COMMENT.sub(b"", head[2:end]).splitlines()]
    entries = {line[0].decode(): line[1].strip() for line in lines if len(line) == 2}
    width, height, channels, white = (_read_number(entries[name]) for name in ("WIDTH", "HEIGHT", "DEPTH", "MAXVAL"))
    colours, alpha = _TUPLES.get(entries.get("TUPLTYPE", b"").decode("latin1"), ("bands", False))
    if channels != (1 if colours == "grey" else 3) + alpha:
        colours, alpha = "bands", False
    return head.index(b"\n", end) + 1, width, height, channels, white, colours, alpha


def _read_number(token: bytes) -> int:
    if not token.isdigit() or len(token) > 9:
        raise ValueError
    return int(token)
