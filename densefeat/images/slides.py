"""Read regions of TIFFs far larger than memory: only the strips and tiles ("segments") that a region touches are decoded."""

import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np
from PIL import Image, Jpeg2KImagePlugin, JpegImagePlugin

from densefeat.errors import DecodeError
from densefeat.images.decode import MAX_PIXELS, ORIENTATION_TAG, decode_errors, find_jpeg_end, to_rgb

_UNCOMPRESSED, _LZW, _JPEG, _DEFLATE, _PACKBITS, _ZSTANDARD = 1, 5, 7, (8, 32946), 32773, 50000
_APERIO_YCBCR, _JPEG_2000 = 33003, (33003, 33005, 34712)
_COMPRESSIONS = (_UNCOMPRESSED, _LZW, _JPEG, *_DEFLATE, _PACKBITS, _ZSTANDARD, *_JPEG_2000)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # photometric interpretations
_SAMPLES = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}  # a pixel has, without transparency
_PREMULTIPLIED, _TRANSPARENCY = 1, 2  # meanings of an extra sample
_FLIPS = {  # orientation: rows flipped, columns flipped, then rows and columns exchanged
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
_STRIP_BYTES = 2**20
_SPARE_BYTES = 2**16  # by which a small segment may grow when it is compressed
_FAILURE_BYTES = 1000  # counted for a failure that a cache keeps


class NotByRegion(DecodeError):
    """A TIFF cannot be read by region; :func:`densefeat.images.decode.decode_pixels` may decode it as a whole."""


class HasBytes(Protocol):
    @property
    def nbytes(self) -> int: ...


_T = TypeVar("_T", bound=HasBytes)


class ByteCache(Generic[_T]):
    """A cache of the values used last, up to ``max_bytes`` in all, and always the newest. Thread-safe; pickled empty.

    Threads that need the same value at the same time compute it once. A failure to decode is kept like a value.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0  # bytes of ``values``
        self.values: OrderedDict[Hashable, tuple[Future[_T], int]] = OrderedDict()
        self.pending: dict[Hashable, Future[_T]] = {}
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.max_bytes,)

    def get(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        """Return the value of ``key``, computing it if it is not there. An error is raised in all threads that wait for it."""
        with self.lock:
            future = self.pending.get(key)
            if key in self.values:
                self.values.move_to_end(key)
                future = self.values[key][0]
            is_first = future is None
            if future is None:
                future = self.pending[key] = Future()
        if is_first:
            self._fill(key, future, compute)
        try:
            return future.result()
        except DecodeError as error:  # threads must not raise the same object
            raise DecodeError(str(error), error.stage) from None

    def _fill(self, key: Hashable, future: "Future[_T]", compute: Callable[[], _T]) -> None:
        size = None
        try:
            value = compute()
            size = value.nbytes
            future.set_result(value)
        except DecodeError as error:
            size = _FAILURE_BYTES if error.stage == "decode" else None
            future.set_exception(DecodeError(str(error), error.stage))  # without frames, which would keep pixels alive
        except BaseException as error:
            future.set_exception(error)
        with self.lock:
            del self.pending[key]
            if size is not None:
                self.values[key] = future, size
                self.size += size
            while self.size > self.max_bytes and len(self.values) > 1:
                self.size -= self.values.popitem(last=False)[1][1]


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
class Colours:
    """The meaning of samples of ``bits`` bits. ``alpha``: of the extra sample; ``palette``: uint8 ``(256, 3)``."""

    photometric: int
    bits: int
    alpha: int | None = None
    palette: np.ndarray | None = None

    def to_rgb(self, samples: np.ndarray) -> np.ndarray:
        """Convert ``(h, w, samples)`` to uint8 ``(h, w, 3)``: transparency over white, deep samples by their 8 highest bits."""
        if self.palette is not None:
            return self.palette[samples[..., 0]]
        if self.bits > 8:
            samples = (samples >> (self.bits - 8)).astype(np.uint8)
        if self.photometric == _YCBCR:
            return np.asarray(Image.frombytes("YCbCr", samples.shape[1::-1], samples.tobytes()).convert("RGB"))
        count = _SAMPLES[self.photometric]
        colour = samples[..., :count]
        if self.photometric == _WHITE_IS_ZERO:
            colour = 255 - colour
        colour = np.broadcast_to(colour, (*samples.shape[:2], 3))
        if self.alpha is None:
            return colour
        pixels = np.concatenate([colour, samples[..., count : count + 1]], axis=2)
        mode = "RGBa" if self.alpha == _PREMULTIPLIED else "RGBA"
        return np.asarray(to_rgb(Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()).convert("RGBA")))


@dataclass(frozen=True)
class Slide:
    """The first page of a TIFF. ``width``, ``height``: of the upright image; ``stored``: height and width in the file."""

    name: Hashable  # identifies its segments in a cache
    open: Callable[[], BinaryIO]
    width: int
    height: int
    stored: tuple[int, int]
    orientation: int
    segments: Segments
    colours: Colours
    compression: int
    decode: Callable[[bytes, int], np.ndarray]  # from a segment's bytes and number to (h, w, samples)

    @property
    def nbytes(self) -> int:
        return 10_000 + 100 * len(self.segments.offsets)

    def region(self, x: int, y: int, width: int, height: int, decoded: ByteCache[np.ndarray]) -> np.ndarray:
        """Read uint8 RGB ``(height, width, 3)`` at ``x``, ``y`` of the upright image. ``decoded``: a cache of segments.

        A segment without bytes is white: scanners leave out what is empty. Raises DecodeError where a segment cannot be
        read (stage ``read``) or decoded.
        """
        flip_rows, flip_columns, exchange = _FLIPS.get(self.orientation, (False, False, False))
        if exchange:
            x, y, width, height = y, x, height, width
        if flip_columns:
            x = self.stored[1] - x - width
        if flip_rows:
            y = self.stored[0] - y - height
        pixels = self._stored_region(x, y, width, height, decoded)
        pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        return pixels.swapaxes(0, 1) if exchange else pixels

    def _stored_region(self, x: int, y: int, width: int, height: int, decoded: ByteCache[np.ndarray]) -> np.ndarray:
        across, down = self.segments.width, self.segments.height
        pixels = np.empty((height, width, 3), np.uint8)
        for row in range(y // down, (y + height - 1) // down + 1):
            for column in range(x // across, (x + width - 1) // across + 1):
                segment = decoded.get((self.name, row, column), partial(self._decode_segment, row, column))
                top, left = row * down, column * across
                rows = slice(max(y, top), min(y + height, top + down))
                columns = slice(max(x, left), min(x + width, left + across))
                part = segment[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
                pixels[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x] = part
        return pixels

    def _decode_segment(self, row: int, column: int) -> np.ndarray:
        """Decode the part of a segment that lies in the image, from all its planes: uint8 RGB ``(h, w, 3)``."""
        grid = self.segments
        numbers = [(plane * grid.rows + row) * grid.columns + column for plane in range(grid.planes)]
        shape = min(grid.height, self.stored[0] - row * grid.height), min(grid.width, self.stored[1] - column * grid.width)
        if not any(grid.byte_counts[number] for number in numbers):
            return np.broadcast_to(np.uint8(255), (*shape, 3))
        planes = [self._decode_plane(number)[: shape[0], : shape[1]] for number in numbers]
        if any(plane.shape[:2] != shape for plane in planes):
            raise DecodeError(f"segment {numbers[0]}: fewer than its {shape[1]}×{shape[0]} pixels")
        with decode_errors():
            return self.colours.to_rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2))

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
        if not 0 < size <= 2 * self.segments.nbytes + _SPARE_BYTES:
            raise DecodeError(f"{size:,} bytes for {self.segments.nbytes:,} bytes of pixels")
        try:
            with self.open() as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DecodeError(error.strerror or type(error).__name__, "read") from error
        if len(data) < size:
            raise DecodeError("the file ends inside it", "read")
        return data

    def _check_size(self, data: bytes) -> None:
        """Raise DecodeError for a JPEG that is truncated, and for a JPEG or JPEG 2000 that is larger than its segment."""
        if self.compression == _JPEG:
            find_jpeg_end(data)
            width, height = JpegImagePlugin.JpegImageFile(io.BytesIO(data)).size
        elif self.compression in _JPEG_2000:
            width, height = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data)).size
        else:
            return
        if width > self.segments.width or height > self.segments.height:
            raise DecodeError(f"{width}×{height} pixels in place of {self.segments.width}×{self.segments.height}")


def open_slide(open: Callable[[], BinaryIO], name: Hashable, max_pixels: int = MAX_PIXELS) -> Slide:
    """Read the tags of a TIFF's first page, but no pixels yet.

    ``open``: opens the file for reading and seeking; it is called for every segment, in any thread. ``name``: must be unique
    among slides. ``max_pixels``: of a segment. Raises NotByRegion where tifffile is missing, or for a TIFF of a kind that is
    not read by region; DecodeError for a file that cannot be opened (stage ``read``) or whose header is damaged.
    """
    try:
        import imagecodecs  # noqa: F401
        import tifffile
    except ImportError as error:
        raise NotByRegion("TIFFs are read by region with the extra 'slides': pip install tifffile imagecodecs") from error
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # keeps its remarks on odd tags off the screen
    with decode_errors(), open() as file, tifffile.TiffFile(file) as tiff:
        return _make_slide(open, name, tiff.pages.first, max_pixels)


def _make_slide(open: Callable[[], BinaryIO], name: Hashable, page: Any, max_pixels: int) -> Slide:
    height, width = stored = int(page.imagelength), int(page.imagewidth)
    if min(stored) < 1:
        raise DecodeError(f"{width}×{height} pixels")
    if page.compression not in _COMPRESSIONS:
        raise NotByRegion(f"compression {getattr(page.compression, 'name', page.compression)} is not read by region")
    if page.imagedepth != 1 or page.is_ndpi:
        raise NotByRegion("volumes and NDPI files are not read by region")
    colours = _read_colours(page)
    segments, decode = _read_segments(page), _choose_decoder(page)
    if _can_be_split(page, segments):
        segments, decode = _split_strips(page, segments)
    if segments.height * segments.width > max_pixels:
        raise NotByRegion(f"its segments of {segments.width}×{segments.height} pixels are too large to be read by region")
    orientation = page.tags.valueof(ORIENTATION_TAG)
    if orientation in _FLIPS and _FLIPS[orientation][2]:
        height, width = stored[::-1]
    return Slide(name, open, width, height, stored, orientation, segments, colours, int(page.compression), decode)


def _read_colours(page: Any) -> Colours:
    """Read the meaning of samples.

    Raises NotByRegion for all but greys and RGB of 8 to 16 bits, transparent or not, palettes, and the YCbCr of slides.
    """
    photometric = int(page.photometric)
    if page.compression == _APERIO_YCBCR:
        photometric = _YCBCR  # whatever the tag says
    elif photometric == _YCBCR:
        if page.compression != _JPEG or page.planarconfig != 1:
            raise NotByRegion("YCbCr without JPEG is not read by region")
        photometric = _RGB  # libjpeg converts it
    extra = tuple(int(meaning) for meaning in page.extrasamples)
    if photometric not in _SAMPLES or page.samplesperpixel != _SAMPLES[photometric] + len(extra):
        name = getattr(page.photometric, "name", photometric)
        raise NotByRegion(
            f"{page.samplesperpixel} samples a pixel as {name}, {len(extra)} of them extra, are not read by region"
        )
    codec = page.compression == _JPEG or page.compression in _JPEG_2000
    bits = page.bitspersample
    deepest = 8 if codec or photometric == _PALETTE else 16
    if page.sampleformat != 1 or not isinstance(bits, int) or not 8 <= bits <= deepest or (codec and extra):
        raise NotByRegion(f"samples of {page.dtype or bits}, {len(extra)} of them extra, are not read by region")
    alpha = extra[0] if extra and extra[0] in (_PREMULTIPLIED, _TRANSPARENCY) else None
    palette = (np.asarray(page.colormap).reshape(3, 256).T >> 8).astype(np.uint8) if photometric == _PALETTE else None
    return Colours(photometric, bits, alpha, palette)


def _read_segments(page: Any) -> Segments:
    """Read where segments lie. Raises DecodeError where the header lists fewer of them than the image has."""
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if min(height, width) < 1:
        raise DecodeError(f"segments of {width}×{height} pixels")
    rows, columns = -(-page.imagelength // height), -(-page.imagewidth // width)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    listed = min(len(page.dataoffsets), len(page.databytecounts))
    if listed < rows * columns * planes:
        raise DecodeError(f"{listed} segments where {rows * columns * planes} are needed")
    pixel_bytes = page.dtype.itemsize * (page.samplesperpixel // planes)
    return Segments(height, width, rows, columns, planes, tuple(page.dataoffsets), tuple(page.databytecounts), pixel_bytes)


def _choose_decoder(page: Any) -> Callable[[bytes, int], np.ndarray]:
    """Return the function that decodes a segment's bytes."""
    if page.compression in _JPEG_2000:  # tifffile refuses YCbCr
        from imagecodecs import jpeg2k_decode

        return lambda data, _: np.atleast_3d(jpeg2k_decode(data))
    decode = page.decode
    options = {"jpegtables": page.jpegtables} if page.compression == _JPEG else {}
    return lambda data, number: decode(data, number, **options)[0][0]


def _can_be_split(page: Any, strip: Segments) -> bool:
    """Check whether each plane is one uncompressed strip, and all of it lies in the file."""
    plain = page.compression == _UNCOMPRESSED and page.predictor == 1 and page.fillorder == 1 and page.bitspersample in (8, 16)
    size = page.imagelength * page.imagewidth * strip.pixel_bytes
    complete = all(count >= size for count in strip.byte_counts) and max(strip.offsets) + size <= page.parent.filehandle.size
    return plain and complete and not page.is_tiled and strip.rows == 1


def _split_strips(page: Any, strip: Segments) -> tuple[Segments, Callable[[bytes, int], np.ndarray]]:
    """Split an image of one uncompressed strip a plane into many strips of about a megabyte."""
    dtype = np.dtype(f"{page.parent.byteorder}u{page.dtype.itemsize}")
    samples = strip.pixel_bytes // dtype.itemsize
    row_bytes = strip.width * strip.pixel_bytes
    height = max(1, min(strip.height, _STRIP_BYTES // row_bytes))
    starts = range(0, page.imagelength, height)
    offsets = tuple(offset + start * row_bytes for offset in strip.offsets for start in starts)
    sizes = tuple(min(height, page.imagelength - start) * row_bytes for _ in strip.offsets for start in starts)
    strips = replace(strip, height=height, rows=len(starts), offsets=offsets, byte_counts=sizes)
    return strips, lambda data, _: np.frombuffer(data, dtype).reshape(-1, strip.width, samples)
