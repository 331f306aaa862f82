"""Read ``.npy`` files, the arrays that numpy saves: of one image, of real numbers, and nothing that is unpickled."""

import io
import math
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.footprint import count_rule_bytes
from densefeat.images.guards import check_image_size
from densefeat.images.memory import MEMORY
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.samples import Samples

MAGIC = b"\x93NUMPY"
_MAX_CHANNELS = 64
_MANY = 4  # an axis of channels has at most one in so many of the pixels along the other axes


@dataclass(frozen=True)
class _Array:
    """The header of an array: ``channels_first`` where it is ``(c, h, w)``, else it is ``(h, w, c)`` or ``(h, w)``."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int
    channels_first: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.shape[1:] if self.channels_first else self.shape[:2]
        return height, width


def read_size(file: BinaryIO, max_pixels: int) -> tuple[int, int]:
    """Read height and width. Raises DecodeError as :func:`read_npy` does."""
    return _read_header(file, max_pixels).size


def read_npy(data: bytes, max_pixels: int, rule: PixelRule) -> tuple[np.ndarray, Samples]:
    """Read an image's samples ``(h, w, n)``, and what they mean: uint8 ``(h, w, 3)`` is RGB, ``(h, w)`` grey, others bands.

    Raises DecodeError for an array that is no image, of no real numbers, too large, truncated, or of which it cannot be told
    which axis the channels are.
    """
    array = _read_header(io.BytesIO(data), max_pixels)
    count = math.prod(array.shape)
    if len(data) - array.start != count * array.dtype.itemsize:
        raise DecodeError(
            f"{len(data) - array.start:,} bytes of an array of {count * array.dtype.itemsize:,}: truncated, or not one array"
        )
    height, width = array.size
    size = count * array.dtype.itemsize + width * height * 3 + count_rule_bytes(width, height, rule)
    MEMORY.claim(size, f"{width}×{height} pixels of .npy")
    values = np.frombuffer(data, array.dtype, count, array.start).reshape(array.shape, order="F" if array.fortran else "C")
    values = values.astype(array.dtype.newbyteorder("="), copy=False)
    values = np.moveaxis(values, 0, -1) if array.channels_first else values.reshape(height, width, -1)
    return _describe(values, array)


def _describe(values: np.ndarray, array: _Array) -> tuple[np.ndarray, Samples]:
    if values.dtype.kind == "b":
        return values.astype(np.uint8), Samples("grey" if values.shape[2] == 1 else "bands", 1)
    bits = 8 * values.itemsize if values.dtype.kind == "u" and values.itemsize <= 2 else 0
    if values.shape[2] == 1:
        return values, Samples("grey", bits)
    rgb = values.dtype == np.uint8 and values.shape[2] == 3 and not array.channels_first
    return values, Samples("rgb" if rgb else "bands", bits)


def _read_header(file: BinaryIO, max_pixels: int) -> _Array:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DecodeError(f".npy of version {version[0]}.{version[1]}: read are arrays of numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.kind not in "buifc" or dtype.names is not None or dtype.subdtype is not None:
        raise DecodeError(f".npy of {dtype.name}: read are arrays of real numbers")
    channels_first = _puts_channels_first(shape)
    array = _Array(shape, dtype, fortran, file.tell(), channels_first)
    height, width = array.size
    check_image_size(width, height, max_pixels)
    return array


def _puts_channels_first(shape: tuple[int, ...]) -> bool:
    """Tell whether an array is ``(c, h, w)``. Raises DecodeError where it is no image, or could be either."""
    text = "×".join(map(str, shape))
    if len(shape) == 2:
        return False
    if len(shape) != 3:
        raise DecodeError(f".npy of shape {text}: an image is (h, w), (h, w, channels) or (channels, h, w), one in a file")
    first, middle, last = shape
    channels, other = min(first, last), max(first, last)
    if not 0 < channels <= min(_MAX_CHANNELS, middle // _MANY, other // _MANY):
        raise DecodeError(
            f".npy of shape {text}: it is not clear which axis the channels are: the first or the last with at most"
            f" {_MAX_CHANNELS}, and a quarter of the others; cut or transpose the array"
        )
    return first < last
