"""Read TIFFs, whole or by region: only the strips and tiles ("segments") that a region touches are decoded.

A file may be far larger than memory. Both ways give the same pixels, or the same reason why there are none.
"""

import io
import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
from PIL import Jpeg2KImagePlugin, JpegImagePlugin, WebPImagePlugin

from densefeat.errors import DecodeError
from densefeat.images.byte_cache import ByteCache
from densefeat.images.guards import MAX_PIXELS, decode_errors
from densefeat.images.jpeg import find_jpeg_end
from densefeat.images.samples import Samples, check_brightness, is_bright
from densefeat.images.tiff_samples import JPEG, JPEG_2000, read_samples

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF's, in either byte order
_UNCOMPRESSED, _WEBP = 1, 50001
_COMPRESSIONS = {
    _UNCOMPRESSED: "none",
    2: "CCITT RLE",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    JPEG: "JPEG",
    8: "deflate",
    32946: "deflate",
    32773: "PackBits",
    34925: "LZMA",
    50000: "Zstandard",
    _WEBP: "WebP",
    **dict.fromkeys(JPEG_2000, "JPEG 2000"),
}
_REDUCED, _MASK = 1, 4  # bits of a page's subfile type
_ORIENTATION, _SUBSAMPLING = 274, 530  # tags
_FLIPS = {  # orientation: rows flipped, columns flipped, then rows and columns exchanged
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
_MAX_PAGES = 64  # that are looked at
_STRIP_BYTES = 2**20
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
        decode: From a segment's bytes and number to samples ``(h, w, n)``.
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
    decode: Callable[[bytes, int], np.ndarray]

    @property
    def nbytes(self) -> int:
        return 10_000 + 100 * len(self.segments.offsets)

    def read(self) -> np.ndarray:
        """Read the whole image: uint8 RGB ``(height, width, 3)``. Raises DecodeError as the methods below do."""
        self.check_samples()
        return self.region(0, 0, self.width, self.height, ByteCache(0))

    def check_samples(self) -> None:
        """Raise DecodeError for an image that may have fewer bits than its samples; segments are read until it is clear."""
        if not self.samples.may_be_shallow:
            return
        brightest = 0
        for row in range(self.segments.rows):
            for column in range(self.segments.columns):
                samples = self._read_segment(row, column)
                if samples is not None:
                    brightest = max(brightest, self.samples.find_brightest(samples))
                if is_bright(brightest):
                    return
        check_brightness(brightest)

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
        """Decode the part of a segment that lies in the image: uint8 RGB ``(h, w, 3)``."""
        samples = self._read_segment(row, column)
        if samples is None:
            return np.broadcast_to(np.uint8(255), (*self._segment_shape(row, column), 3))
        with decode_errors():
            return self.samples.to_rgb(samples)

    def _segment_shape(self, row: int, column: int) -> tuple[int, int]:
        grid = self.segments
        return min(grid.height, self.stored[0] - row * grid.height), min(grid.width, self.stored[1] - column * grid.width)

    def _read_segment(self, row: int, column: int) -> np.ndarray | None:
        """Read the part of a segment in the image, from all its planes: ``(h, w, samples)``; None if the file leaves it out."""
        grid = self.segments
        numbers = [(plane * grid.rows + row) * grid.columns + column for plane in range(grid.planes)]
        shape = self._segment_shape(row, column)
        if not any(grid.byte_counts[number] for number in numbers):
            return None
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
        if not 0 < size <= 2 * self.segments.nbytes + _SPARE_BYTES:
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
            find_jpeg_end(data)
            width, height = JpegImagePlugin.JpegImageFile(io.BytesIO(data)).size
        elif self.compression in JPEG_2000:
            width, height = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data)).size
        elif self.compression == _WEBP:
            width, height = WebPImagePlugin.WebPImageFile(io.BytesIO(data)).size
        else:
            return
        if width > self.segments.width or height > self.segments.height:
            raise DecodeError(f"{width}×{height} pixels in place of {self.segments.width}×{self.segments.height}")


def open_tiff(open: Callable[[], BinaryIO], name: Hashable, max_pixels: int = MAX_PIXELS) -> TiffImage:
    """Read the tags of a TIFF's image, but no pixels yet.

    It is the first page that is not a smaller copy. ``open``: opens the file for reading and seeking; it is called for every
    segment, in any thread. ``name``: must be unique among the images of a cache. ``max_pixels``: of a segment.
    Raises DecodeError for a file that cannot be opened (stage ``read``), whose header is damaged, or whose pixels have no
    agreed meaning.
    """
    import tifffile  # commands that decode nothing must not wait for it

    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # keeps its remarks on odd tags off the screen
    with decode_errors(), open() as file, tifffile.TiffFile(file) as tiff:
        page, several = _choose_page(tiff)
        return _make_image(open, name, page, several, max_pixels)


def _choose_page(tiff: Any) -> tuple[Any, bool]:
    """Return the first page that is neither a smaller copy nor a mask, and whether there are more such pages."""
    pages = list(_list_pages(tiff))
    images = [page for page in pages if not page.subfiletype & (_REDUCED | _MASK)]
    if not images and any(page.subifds for page in pages):
        raise DecodeError("the file holds a thumbnail and its image in subfiles, as raw files of cameras do: convert it to RGB")
    first, *others = images or pages
    # a level of a pyramid that is not marked as a smaller copy is at most half as wide
    return first, any(2 * page.imagewidth > first.imagewidth for page in others) or _holds_stack(tiff)


def _list_pages(tiff: Any) -> Iterator[Any]:
    """List the pages that can be read, up to ``_MAX_PAGES`` of them; without the first one there is no image."""
    yield tiff.pages.first
    try:
        yield from islice(tiff.pages, 1, _MAX_PAGES)
    except Exception:  # tifffile raises many kinds; a later page that is damaged does not matter
        return


def _holds_stack(tiff: Any) -> bool:
    """Check for ImageJ's stacks, which may have many images behind one page."""
    count = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
    return isinstance(count, int) and count > 1


def _make_image(open: Callable[[], BinaryIO], name: Hashable, page: Any, several: bool, max_pixels: int) -> TiffImage:
    height, width = stored = int(page.imagelength), int(page.imagewidth)
    if min(stored) < 1:
        raise DecodeError(f"{width}×{height} pixels")
    if page.compression not in _COMPRESSIONS:
        compression = getattr(page.compression, "name", page.compression)
        raise DecodeError(f"TIFF with compression {compression}: read are {', '.join(dict.fromkeys(_COMPRESSIONS.values()))}")
    if page.imagedepth != 1 or page.is_ndpi:
        raise DecodeError("volumes and NDPI files are not read: convert to TIFF or OME-TIFF")
    samples = read_samples(page)
    segments, decode = _read_segments(page), _choose_decoder(page)
    if _can_be_split(page, segments):
        segments, decode = _split_strips(page, segments)
    if segments.height * segments.width > max_pixels:
        raise DecodeError(
            f"strips or tiles of {segments.width}×{segments.height} pixels are more than the limit of {max_pixels:,}"
            " (--max-pixels)"
        )
    orientation = page.tags.valueof(_ORIENTATION)
    if orientation in _FLIPS and _FLIPS[orientation][2]:
        height, width = stored[::-1]
    return TiffImage(name, open, width, height, stored, orientation, segments, samples, int(page.compression), several, decode)


def _read_segments(page: Any) -> Segments:
    """Read where segments lie. Raises DecodeError where the header lists fewer than the image has, or none with pixels."""
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if min(height, width) < 1:
        raise DecodeError(f"segments of {width}×{height} pixels")
    rows, columns = -(-page.imagelength // height), -(-page.imagewidth // width)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    listed = min(len(page.dataoffsets), len(page.databytecounts))
    if listed < rows * columns * planes:
        raise DecodeError(f"{listed} segments where {rows * columns * planes} are needed")
    if not any(page.databytecounts):
        raise DecodeError("none of the segments has any bytes")
    pixel_bytes = page.dtype.itemsize * (page.samplesperpixel // planes)
    return Segments(height, width, rows, columns, planes, tuple(page.dataoffsets), tuple(page.databytecounts), pixel_bytes)


def _choose_decoder(page: Any) -> Callable[[bytes, int], np.ndarray]:
    """Return the function that decodes a segment's bytes."""
    if page.compression in JPEG_2000:  # tifffile refuses YCbCr
        from imagecodecs import jpeg2k_decode

        return lambda data, _: np.atleast_3d(jpeg2k_decode(data))
    if page.compression != JPEG and page.is_subsampled:
        return _choose_subsampled_decoder(page)
    decode = page.decode
    options = {"jpegtables": page.jpegtables} if page.compression == JPEG else {}
    return lambda data, number: decode(data, number, **options)[0][0]


def _choose_subsampled_decoder(page: Any) -> Callable[[bytes, int], np.ndarray]:
    """Return a decoder of YCbCr in which several pixels share their colour, without JPEG (TIFF 6.0, section 21)."""
    from tifffile import TIFF

    if page.predictor != 1 or page.fillorder != 1:
        raise DecodeError("TIFF with an unusual kind of YCbCr: convert to RGB")
    across, down = page.tags.valueof(_SUBSAMPLING)
    width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    columns, unit = -(-width // across), across * down + 2
    decompress = None if page.compression == _UNCOMPRESSED else TIFF.DECOMPRESSORS[page.compression]

    def decode(data: bytes, _: int) -> np.ndarray:
        if decompress:
            data = decompress(data, out=-(-height // down) * columns * unit)
        units = np.frombuffer(data, np.uint8)
        units = units[: len(units) // (columns * unit) * columns * unit].reshape(-1, columns, unit)
        grey = units[..., :-2].reshape(-1, columns, down, across).swapaxes(1, 2).reshape(-1, columns * across, 1)
        colour = units[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
        return np.concatenate([grey, colour], axis=2)

    return decode


def _can_be_split(page: Any, strip: Segments) -> bool:
    """Check whether each plane is one uncompressed strip, and all of it lies in the file."""
    plain = page.compression == _UNCOMPRESSED and page.predictor == 1 and page.fillorder == 1 and page.bitspersample in (8, 16)
    plain = plain and not page.is_subsampled
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
