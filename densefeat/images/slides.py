"""Regions of TIFFs far larger than memory: only the strips and tiles ("segments") that a region touches are decoded."""

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
from densefeat.images.decode import MAX_PIXELS, ORIENTATION_TAG, jpeg_end, readable, to_rgb

_UNCOMPRESSED, _LZW, _JPEG, _DEFLATE, _PACKBITS, _ZSTANDARD = 1, 5, 7, (8, 32946), 32773, 50000
_APERIO_YCBCR, _JPEG_2000 = 33003, (33003, 33005, 34712)
_COMPRESSIONS = (_UNCOMPRESSED, _LZW, _JPEG, *_DEFLATE, _PACKBITS, _ZSTANDARD, *_JPEG_2000)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # photometric interpretations
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}  # samples a pixel, without transparency
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
_THIN_STRIP = 2**20  # bytes
_SPARE_BYTES = 2**16  # that compression may add to a small segment
_FAILURE_BYTES = 1000  # a remembered failure's share of a cache


class NotByRegion(DecodeError):
    """A TIFF of a kind that only :func:`densefeat.images.decode.decode_pixels` may know."""


class HasBytes(Protocol):
    @property
    def nbytes(self) -> int: ...


_T = TypeVar("_T", bound=HasBytes)


class ByteCache(Generic[_T]):
    """The values used last, up to ``max_bytes`` of them, and always the newest. Thread-safe; pickled without its contents.

    Threads that ask for one key at the same time share one making. Pixels that cannot be decoded are remembered as such.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0
        self.made: OrderedDict[Hashable, tuple[Future[_T], int]] = OrderedDict()
        self.making: dict[Hashable, Future[_T]] = {}
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.max_bytes,)

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """The value of ``key``, from ``make`` where it is not held; what ``make`` raised, for all that waited for it."""
        with self.lock:
            slot = self.making.get(key)
            if key in self.made:
                self.made.move_to_end(key)
                slot = self.made[key][0]
            mine = slot is None
            if slot is None:
                slot = self.making[key] = Future()
        if mine:
            self.fill(key, slot, make)
        try:
            return slot.result()
        except DecodeError as error:  # several threads must not raise the same object
            raise DecodeError(str(error), error.stage) from None

    def fill(self, key: Hashable, slot: "Future[_T]", make: Callable[[], _T]) -> None:
        size = None
        try:
            value = make()
            size = value.nbytes
            slot.set_result(value)
        except DecodeError as error:
            size = _FAILURE_BYTES if error.stage == "decode" else None
            slot.set_exception(DecodeError(str(error), error.stage))  # without frames, which would keep pixels alive
        except BaseException as error:
            slot.set_exception(error)
        with self.lock:
            del self.making[key]
            if size is not None:
                self.made[key] = slot, size
                self.held += size
            while self.held > self.max_bytes and len(self.made) > 1:
                self.held -= self.made.popitem(last=False)[1][1]


@dataclass(frozen=True)
class Segments:
    """Where strips or tiles lie: ``height`` × ``width`` pixels each, ``rows`` × ``columns`` of them for each of ``planes``."""

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
        """Of one, decoded."""
        return self.height * self.width * self.pixel_bytes


@dataclass(frozen=True)
class Colours:
    """What samples of ``bits`` bits mean. ``alpha``: the meaning of the extra one; ``palette``: uint8 ``(256, 3)``."""

    photometric: int
    bits: int
    alpha: int | None = None
    palette: np.ndarray | None = None

    def to_rgb(self, samples: np.ndarray) -> np.ndarray:
        """uint8 ``(h, w, 3)`` of ``(h, w, samples)``: transparency over white, deep samples by their 8 highest bits."""
        if self.palette is not None:
            return self.palette[samples[..., 0]]
        if self.bits > 8:
            samples = (samples >> (self.bits - 8)).astype(np.uint8)
        if self.photometric == _YCBCR:
            return np.asarray(Image.frombytes("YCbCr", samples.shape[1::-1], samples.tobytes()).convert("RGB"))
        count = _COLOURS[self.photometric]
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
    """A TIFF's first page. ``width``, ``height``: of the upright image; ``stored``: height and width before it is turned."""

    name: Hashable  # of its segments in a cache
    open: Callable[[], BinaryIO]
    width: int
    height: int
    stored: tuple[int, int]
    orientation: int
    segments: Segments
    colours: Colours
    compression: int
    decode: Callable[[bytes, int], np.ndarray]  # a segment's bytes and number to (h, w, samples)

    @property
    def nbytes(self) -> int:
        return 10_000 + 100 * len(self.segments.offsets)

    def region(self, x: int, y: int, width: int, height: int, decoded: ByteCache[np.ndarray]) -> np.ndarray:
        """uint8 RGB ``(height, width, 3)`` at ``x``, ``y`` of the upright image. ``decoded``: segments of any slides.

        Raises DecodeError where a segment that it touches cannot be read (stage ``read``) or decoded. A segment without
        bytes, which scanners leave out where there is nothing to see, is white.
        """
        flip_rows, flip_columns, exchange = _FLIPS.get(self.orientation, (False, False, False))
        if exchange:
            x, y, width, height = y, x, height, width
        if flip_columns:
            x = self.stored[1] - x - width
        if flip_rows:
            y = self.stored[0] - y - height
        pixels = self.stored_region(x, y, width, height, decoded)
        pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        return pixels.swapaxes(0, 1) if exchange else pixels

    def stored_region(self, x: int, y: int, width: int, height: int, decoded: ByteCache[np.ndarray]) -> np.ndarray:
        across, down = self.segments.width, self.segments.height
        pixels = np.empty((height, width, 3), np.uint8)
        for row in range(y // down, (y + height - 1) // down + 1):
            for column in range(x // across, (x + width - 1) // across + 1):
                segment = decoded.get((self.name, row, column), partial(self.segment, row, column))
                top, left = row * down, column * across
                rows = slice(max(y, top), min(y + height, top + down))
                columns = slice(max(x, left), min(x + width, left + across))
                part = segment[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
                pixels[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x] = part
        return pixels

    def segment(self, row: int, column: int) -> np.ndarray:
        """uint8 RGB ``(h, w, 3)`` of a segment as far as it lies in the image, all its planes together."""
        grid = self.segments
        numbers = [(plane * grid.rows + row) * grid.columns + column for plane in range(grid.planes)]
        shape = min(grid.height, self.stored[0] - row * grid.height), min(grid.width, self.stored[1] - column * grid.width)
        if not any(grid.byte_counts[number] for number in numbers):
            return np.broadcast_to(np.uint8(255), (*shape, 3))
        planes = [self.samples(number)[: shape[0], : shape[1]] for number in numbers]
        if any(plane.shape[:2] != shape for plane in planes):
            raise DecodeError(f"segment {numbers[0]}: fewer than its {shape[1]}×{shape[0]} pixels")
        with readable():
            return self.colours.to_rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2))

    def samples(self, number: int) -> np.ndarray:
        """``(h, w, samples)`` of one plane of a segment."""
        try:
            with readable():
                data = self.read(number)
                self.check_embedded(data)
                return self.decode(data, number)
        except DecodeError as error:
            raise DecodeError(f"segment {number}: {error}", error.stage) from error

    def read(self, number: int) -> bytes:
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
            raise DecodeError("the file ends before it does", "read")
        return data

    def check_embedded(self, data: bytes) -> None:
        """Raise DecodeError for a JPEG that is cut off, and for one, or a JPEG 2000, that is larger than its segment."""
        if self.compression == _JPEG:
            jpeg_end(data)
            width, height = JpegImagePlugin.JpegImageFile(io.BytesIO(data)).size
        elif self.compression in _JPEG_2000:
            width, height = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data)).size
        else:
            return
        if width > self.segments.width or height > self.segments.height:
            raise DecodeError(f"{width}×{height} pixels in place of {self.segments.width}×{self.segments.height}")


def open_slide(open: Callable[[], BinaryIO], name: Hashable, max_pixels: int = MAX_PIXELS) -> Slide:
    """The first page of a TIFF, its tags read, no pixel yet. ``max_pixels``: of a segment.

    ``open``: the file, for reading and seeking; called for every segment, in any thread. ``name``: its own among all slides.
    Raises NotByRegion where tifffile is missing, or the pixels are of a kind that is not read by region; DecodeError for a
    file that cannot be opened (stage ``read``) or whose header is damaged.
    """
    try:
        import imagecodecs  # noqa: F401
        import tifffile
    except ImportError as error:
        raise NotByRegion("TIFFs are read by region with the extra 'slides': pip install tifffile imagecodecs") from error
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # its remarks on odd tags are for those who set up logging, not the screen
    with readable(), open() as file, tifffile.TiffFile(file) as tiff:
        return _slide_of_page(open, name, tiff.pages.first, max_pixels)


def _slide_of_page(open: Callable[[], BinaryIO], name: Hashable, page: Any, max_pixels: int) -> Slide:
    height, width = stored = int(page.imagelength), int(page.imagewidth)
    if min(stored) < 1:
        raise DecodeError(f"{width}×{height} pixels")
    if page.compression not in _COMPRESSIONS:
        raise NotByRegion(f"compression {getattr(page.compression, 'name', page.compression)} is not read by region")
    if page.imagedepth != 1 or page.is_ndpi:
        raise NotByRegion("volumes and NDPI files are not read by region")
    colours = _colours_of(page)
    segments, decode = _segments_of(page), _decoder_of(page)
    if _can_be_thinned(page, segments):
        segments, decode = _thin_strips(page, segments)
    if segments.height * segments.width > max_pixels:
        raise NotByRegion(f"its segments of {segments.width}×{segments.height} pixels are too large to be read by region")
    orientation = page.tags.valueof(ORIENTATION_TAG)
    if orientation in _FLIPS and _FLIPS[orientation][2]:
        height, width = stored[::-1]
    return Slide(name, open, width, height, stored, orientation, segments, colours, int(page.compression), decode)


def _colours_of(page: Any) -> Colours:
    """NotByRegion for all but greys and RGB of 8 to 16 bits, transparent or not, palettes, and YCbCr as slides have it."""
    photometric = int(page.photometric)
    if page.compression == _APERIO_YCBCR:
        photometric = _YCBCR  # so it is there, whatever the tag says
    elif photometric == _YCBCR:
        if page.compression != _JPEG or page.planarconfig != 1:
            raise NotByRegion("YCbCr without JPEG is not read by region")
        photometric = _RGB  # libjpeg converts it
    extra = tuple(int(meaning) for meaning in page.extrasamples)
    if photometric not in _COLOURS or page.samplesperpixel != _COLOURS[photometric] + len(extra):
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


def _segments_of(page: Any) -> Segments:
    """DecodeError where the header lists fewer segments than the image has."""
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


def _decoder_of(page: Any) -> Callable[[bytes, int], np.ndarray]:
    if page.compression in _JPEG_2000:  # tifffile would refuse YCbCr
        from imagecodecs import jpeg2k_decode

        return lambda data, _: np.atleast_3d(jpeg2k_decode(data))
    decode = page.decode
    options = {"jpegtables": page.jpegtables} if page.compression == _JPEG else {}
    return lambda data, number: decode(data, number, **options)[0][0]


def _can_be_thinned(page: Any, whole: Segments) -> bool:
    """Whether each plane lies as it is in one strip, all of it inside the file."""
    plain = page.compression == _UNCOMPRESSED and page.predictor == 1 and page.fillorder == 1 and page.bitspersample in (8, 16)
    size = page.imagelength * page.imagewidth * whole.pixel_bytes
    held = all(count >= size for count in whole.byte_counts) and max(whole.offsets) + size <= page.parent.filehandle.size
    return plain and held and not page.is_tiled and whole.rows == 1


def _thin_strips(page: Any, whole: Segments) -> tuple[Segments, Callable[[bytes, int], np.ndarray]]:
    """An image that lies in one uncompressed strip (a plane) as many strips of about a megabyte."""
    dtype = np.dtype(f"{page.parent.byteorder}u{page.dtype.itemsize}")
    samples = whole.pixel_bytes // dtype.itemsize
    row_bytes = whole.width * whole.pixel_bytes
    height = max(1, min(whole.height, _THIN_STRIP // row_bytes))
    starts = range(0, page.imagelength, height)
    offsets = tuple(offset + start * row_bytes for offset in whole.offsets for start in starts)
    sizes = tuple(min(height, page.imagelength - start) * row_bytes for _ in whole.offsets for start in starts)
    thin = replace(whole, height=height, rows=len(starts), offsets=offsets, byte_counts=sizes)
    return thin, lambda data, _: np.frombuffer(data, dtype).reshape(-1, whole.width, samples)
