"""Pixels of one image of a TIFF, by region: only the strips and tiles ("segments") that a region touches are decoded."""

import io
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import BinaryIO

import numpy as np
from PIL import Jpeg2KImagePlugin

from densefeat.errors import DecodeError
from densefeat.images.byte_cache import ByteCache
from densefeat.images.converter import Converter, make_converter
from densefeat.images.footprint import read_webp_header
from densefeat.images.guards import decode_errors
from densefeat.images.jpeg import check_scans, find_jpeg_end, read_jpeg_header
from densefeat.images.jpeg_2000 import check_codestream
from densefeat.images.memory import MEMORY
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.samples import Samples
from densefeat.images.tiff_header import ENTRY_BYTES
from densefeat.images.tiff_samples import JPEG, JPEG_2000

WEBP = 50001  # compression
FLIPS = {  # orientation: rows flipped, columns flipped, then rows and columns exchanged
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
_SPARE_BYTES = 2**16  # by which a small segment may grow when it is compressed


@dataclass(frozen=True)
class Segments:
    """The grid of strips or tiles: each ``height`` × ``width`` pixels, ``rows`` × ``columns`` of them in each of ``planes``."""

    height: int
    width: int
    rows: int
    columns: int
    planes: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    pixel_bytes: int  # of one plane

    @property
    def nbytes(self) -> int:
        """Size of one decoded segment."""
        return self.height * self.width * self.pixel_bytes


@dataclass(frozen=True)
class TiffImage:
    """An image of a TIFF.

    Attributes:
        name: Identifies its segments in a cache.
        open: Opens the file for reading and seeking.
        width, height: Of the upright image.
        stored: Height and width in the file.
        several: The file has more images than this one.
        segment_bytes: Memory that decoding a segment takes.
        max_pixels: Of a segment.
        decode: From a segment's bytes and number to samples ``(h, w, n)`` of ``dtype``.
        rule: What becomes of the samples.
    """

    name: Hashable
    open: Callable[[], BinaryIO]
    width: int
    height: int
    stored: tuple[int, int]
    orientation: int
    segments: Segments
    samples: Samples
    compression: int
    several: bool
    segment_bytes: int
    max_pixels: int
    decode: Callable[[bytes, int], np.ndarray]
    dtype: np.dtype
    rule: PixelRule

    @property
    def nbytes(self) -> int:
        return 10_000 + ENTRY_BYTES * len(self.segments.offsets)

    def read(self) -> np.ndarray:
        """Read the whole image ``(height, width, c)``, as :meth:`region` does."""
        return self.region(0, 0, self.width, self.height, ByteCache(0))

    @cached_property
    def converter(self) -> Converter:
        """The conversion of samples; segments are read where their values decide what is black and white.

        Raises UnknownRange and DecodeError as :func:`densefeat.images.converter.make_converter` does.
        """
        return make_converter(self.rule, self.samples, self.dtype, self._read_all)

    def read_values(self) -> np.ndarray:
        """Read the samples ``(h, w, n)`` of the whole image, as they are stored; 0 where the file has none."""
        values = np.zeros((*self.stored, self.segments.planes * self.segments.pixel_bytes // self.dtype.itemsize), self.dtype)
        MEMORY.claim(values.nbytes, f"{self.width}×{self.height} pixels of TIFF")
        for row, column in product(range(self.segments.rows), range(self.segments.columns)):
            if self._has_bytes(row, column):
                top, left = row * self.segments.height, column * self.segments.width
                height, width = self._segment_shape(row, column)
                values[top : top + height, left : left + width] = self._read_segment(row, column)
        return values

    def _read_all(self) -> Iterator[np.ndarray]:
        """Read the samples of all segments that the file has."""
        for row in range(self.segments.rows):
            for column in range(self.segments.columns):
                if self._has_bytes(row, column):
                    with self._reserve_memory(row, column):
                        yield self._read_segment(row, column)

    def region(self, x: int, y: int, width: int, height: int, decoded: ByteCache[np.ndarray]) -> np.ndarray:
        """Read pixels ``(height, width, c)`` at ``x``, ``y`` of the upright image. ``decoded``: a cache of segments.

        They are uint8 RGB, or the float32 channels of the rule. A segment without bytes is white: scanners leave out what is
        empty. Raises DecodeError where a segment cannot be read (stage ``read``) or decoded, and as :attr:`converter` does.
        """
        flip_rows, flip_columns, exchange = self._turn
        pixels = self._stored_region(*self._find_stored(x, y, width, height), decoded)
        pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        return pixels.swapaxes(0, 1) if exchange else pixels

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        """Check whether the file has no bytes for any of a region of the upright image."""
        segments = self._list_segments(*self._find_stored(x, y, width, height))
        return not any(self._has_bytes(row, column) for row, column in segments)

    @property
    def _turn(self) -> tuple[bool, bool, bool]:
        return FLIPS.get(self.orientation, (False, False, False))

    def _find_stored(self, x: int, y: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Return where a region of the upright image lies in the file."""
        flip_rows, flip_columns, exchange = self._turn
        if exchange:
            x, y, width, height = y, x, height, width
        if flip_columns:
            x = self.stored[1] - x - width
        if flip_rows:
            y = self.stored[0] - y - height
        return x, y, width, height

    def _list_segments(self, x: int, y: int, width: int, height: int) -> Iterator[tuple[int, int]]:
        """List row and column of the segments that a region of the file touches."""
        across, down = self.segments.width, self.segments.height
        rows = range(y // down, (y + height - 1) // down + 1)
        return product(rows, range(x // across, (x + width - 1) // across + 1))

    def _stored_region(self, x: int, y: int, width: int, height: int, decoded: ByteCache[np.ndarray]) -> np.ndarray:
        across, down = self.segments.width, self.segments.height
        white = self.converter.white
        pixels = np.empty((height, width, len(white)), white.dtype)
        for row, column in self._list_segments(x, y, width, height):
            top, left = row * down, column * across
            rows = slice(max(y, top), min(y + height, top + down))
            columns = slice(max(x, left), min(x + width, left + across))
            with self._reserve_memory(row, column):
                segment = decoded.get((self.name, row, column), partial(self._decode_segment, row, column))
                part = segment[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
                pixels[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x] = part
                del segment, part
        return pixels

    def _decode_segment(self, row: int, column: int) -> np.ndarray:
        """Decode the part of a segment that lies in the image: its pixels ``(h, w, c)``."""
        if not self._has_bytes(row, column):
            white = self.converter.white
            return np.broadcast_to(white, (*self._segment_shape(row, column), len(white)))
        with decode_errors():
            return self.converter(self._read_segment(row, column))

    def _reserve_memory(self, row: int, column: int) -> AbstractContextManager[None]:
        """Reserve what decoding a segment takes. Raises DecodeError where it is more than the budget."""
        encoded = sum(min(self.segments.byte_counts[number], self._max_bytes) for number in self._list_planes(row, column))
        pixels = f"strips or tiles of {self.segments.width}×{self.segments.height} pixels of TIFF"
        return MEMORY.reserve(self.segment_bytes + encoded, pixels)

    @property
    def _max_bytes(self) -> int:
        """Bytes of an encoded segment."""
        return 2 * self.segments.nbytes + _SPARE_BYTES

    def _segment_shape(self, row: int, column: int) -> tuple[int, int]:
        grid = self.segments
        return min(grid.height, self.stored[0] - row * grid.height), min(grid.width, self.stored[1] - column * grid.width)

    def _list_planes(self, row: int, column: int) -> list[int]:
        """Return the numbers of a segment's planes."""
        grid = self.segments
        return [(plane * grid.rows + row) * grid.columns + column for plane in range(grid.planes)]

    def _has_bytes(self, row: int, column: int) -> bool:
        """Check whether the file has any bytes of a segment."""
        return any(self.segments.byte_counts[number] for number in self._list_planes(row, column))

    def _read_segment(self, row: int, column: int) -> np.ndarray:
        """Read the part of a segment in the image, from all its planes: ``(h, w, samples)``."""
        numbers, shape = self._list_planes(row, column), self._segment_shape(row, column)
        planes = [self._decode_plane(number)[: shape[0], : shape[1]] for number in numbers]
        if any(plane.shape[:2] != shape for plane in planes):
            raise DecodeError(f"segment {numbers[0]}: fewer than its {shape[1]}×{shape[0]} pixels")
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _decode_plane(self, number: int) -> np.ndarray:
        """Decode one plane of a segment: ``(h, w, samples)``."""
        try:
            with decode_errors():
                data = self._read(number)
                self._check_size(data)
                return self.decode(data, number)
        except DecodeError as error:
            raise DecodeError(f"segment {number}: {error}", error.stage) from error

    def _read(self, number: int) -> bytes:
        offset, size = self.segments.offsets[number], self.segments.byte_counts[number]
        if not 0 < size <= self._max_bytes:
            raise DecodeError(f"{size:,} bytes for {self.segments.nbytes:,} bytes of pixels")
        try:
            with self.open() as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DecodeError(error.strerror or type(error).__name__, "read") from error
        if len(data) < size:
            raise DecodeError("truncated: the file ends inside it")
        return data

    def _check_size(self, data: bytes) -> None:
        """Raise DecodeError for a JPEG that is truncated, and for an image in a segment that is larger than it."""
        if self.compression == JPEG:
            width, height = read_jpeg_header(io.BytesIO(data)).open().size
            check_scans(find_jpeg_end(data)[1], width, height, self.max_pixels)
        elif self.compression in JPEG_2000:
            check_codestream(data)
            width, height = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data)).size
        elif self.compression == WEBP:
            width, height, _ = read_webp_header(data)
        else:
            return
        if width > self.segments.width or height > self.segments.height:
            raise DecodeError(f"{width}×{height} pixels in place of {self.segments.width}×{self.segments.height}")
