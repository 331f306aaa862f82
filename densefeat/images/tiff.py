"""Open the images of a TIFF, to be read whole or by region.

A file may be far larger than memory. Both ways give the same pixels, or the same reason why there are none.
"""

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.footprint import count_segment_bytes
from densefeat.images.guards import MAX_PIXELS, decode_errors
from densefeat.images.memory import MEMORY
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from densefeat.images.tiff_header import Table, count_table_bytes
from densefeat.images.tiff_image import FLIPS, WEBP, Segments, TiffImage
from densefeat.images.tiff_pages import FEW_PAGES, MAX_PAGES, TiffEntry, TiffIndex, list_images, read_tables
from densefeat.images.tiff_samples import JPEG, JPEG_2000, read_samples

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF's, in either byte order
_UNCOMPRESSED = 1
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
    WEBP: "WebP",
    **dict.fromkeys(JPEG_2000, "JPEG 2000"),
}
_ORIENTATION, _SUBSAMPLING = 274, 530  # tags
_STRIP_BYTES = 2**20
_MANY_SEGMENTS, _SMALL_SEGMENT = 2**16, 16 * 16  # pixels: so many that are smaller would take minutes


def open_tiff(
    open: Callable[[], BinaryIO],
    name: Hashable,
    max_pixels: int = MAX_PIXELS,
    rule: PixelRule = PHOTOGRAPHS,
    page: int | None = None,
    index: TiffIndex | None = None,
) -> TiffImage:
    """Read the tags of a TIFF's image, but no pixels yet.

    Args:
        open: Opens the file for reading and seeking; it is called for every segment, in any thread.
        name: Must be unique among the images of a cache.
        max_pixels: Limit of a segment.
        page: Which of the file's images, from 1; None: the first, which says whether there are several.
        index: The file's images, as :func:`read_index` found them; None: they are looked up.

    Raises DecodeError for a file that cannot be opened (stage ``read``), that does not have the page, whose header is damaged,
    or whose pixels have no agreed meaning.
    """
    with open_page(open, page, index) as (tiff, entry, several):
        return make_image(open, name, tiff, entry, several, max_pixels, rule)


@contextmanager
def open_page(open: Callable[[], BinaryIO], page: int | None, index: TiffIndex | None) -> Iterator[tuple[Any, TiffEntry, bool]]:
    """Open a TIFF with tifffile: yield it, where an image of it is, and whether it is the first of several."""
    with decode_errors(), open() as file:
        if index is None and page not in (None, 1):
            index = _read_index(file)
        tables = read_tables(file, FEW_PAGES) if index is None else [index.first, *index.find(page or 1).tables]
        with _open_tiff(file, tables) as tiff:
            found = list_images(tiff, tables) if index is None else index
            entry = found.find(page or 1)
            if index is None and any(table.damaged for table in entry.tables) and len(tables) == FEW_PAGES:
                entry = list_images(tiff, read_tables(file, MAX_PAGES)).find(1)
            yield tiff, entry, page is None and len(found.entries) > 1


def read_index(open: Callable[[], BinaryIO]) -> TiffIndex:
    """List all images of a TIFF. Raises DecodeError as :func:`open_tiff` does, and for more than ``MAX_PAGES`` pages."""
    with decode_errors(), open() as file:
        return _read_index(file)


def _read_index(file: BinaryIO) -> TiffIndex:
    tables = read_tables(file, MAX_PAGES + 1)
    if len(tables) > MAX_PAGES:
        raise DecodeError(f"a TIFF of more than {MAX_PAGES:,} pages")
    with _open_tiff(file, tables[:1]) as tiff:
        return list_images(tiff, tables, all_pages=True)


@contextmanager
def _open_tiff(file: BinaryIO, tables: list[Table]) -> Iterator[Any]:
    """Open a file with tifffile; memory for ``tables`` is reserved meanwhile. It reads the first table at once."""
    import tifffile  # commands that decode nothing must not wait for it

    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # keeps its remarks on odd tags off the screen
    with MEMORY.reserve(count_table_bytes(tables), "tables of TIFF"):
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            yield tiff


def make_image(
    open: Callable[[], BinaryIO],
    name: Hashable,
    tiff: Any,
    entry: TiffEntry,
    several: bool,
    max_pixels: int,
    rule: PixelRule,
) -> TiffImage:
    """Make the image of an entry: of one page, or of channels that are pages of their own."""
    images = []
    for channel, table in enumerate(entry.tables):
        plane = 0 if entry.plane is None else entry.plane + channel
        images.append(_make_image(open, name, read_page(tiff, table), plane, several, max_pixels, rule))
    return images[0] if len(images) == 1 else _join_channels(images, entry.names)


def read_page(tiff: Any, table: Table) -> Any:
    """Read the page of a table. Raises DecodeError where that is damaged."""
    from tifffile import TiffPage

    if table.damaged:
        raise DecodeError("the page is missing in the file, or its table is damaged")
    if table.offset == tiff.pages.first.offset:
        return tiff.pages.first
    tiff.filehandle.seek(table.offset)
    return TiffPage(tiff, 1)


def _join_channels(images: list[TiffImage], names: tuple[str, ...]) -> TiffImage:
    """Make one image of bands of images of one channel each, with strips or tiles of the same size."""
    first = images[0]
    plain = {(image.stored, image.orientation, image.dtype, image.compression, image.samples.bits) for image in images}
    grids = {replace(image.segments, offsets=(), byte_counts=()) for image in images}
    inverted = {image.samples.inverted for image in images}
    if len(plain) > 1 or len(grids) > 1 or len(inverted) > 1 or any(image.samples.needs_conversion for image in images):
        raise DecodeError("its channels are pages of different sizes or kinds: export it again")
    declared = {image.samples.declared for image in images}
    samples = replace(
        first.samples, colours="bands", names=names, declared=first.samples.declared if len(declared) == 1 else None
    )
    segments = replace(
        first.segments,
        planes=sum(image.segments.planes for image in images),
        offsets=tuple(offset for image in images for offset in image.segments.offsets),
        byte_counts=tuple(count for image in images for count in image.segments.byte_counts),
    )
    of_each = len(first.segments.offsets)
    decoders = [image.decode for image in images]
    return replace(
        first, samples=samples, segments=segments, segment_bytes=sum(image.segment_bytes for image in images),
        decode=lambda data, number: decoders[number // of_each](data, number % of_each),
    )  # fmt: skip


def _make_image(
    open: Callable[[], BinaryIO], name: Hashable, page: Any, plane: int, several: bool, max_pixels: int, rule: PixelRule
) -> TiffImage:
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
    if plane:
        segments = _shift(page, segments, plane)
    if _can_be_split(page, segments):
        segments, decode = _split_strips(page, segments)
    if segments.height * segments.width > max_pixels:
        raise DecodeError(
            f"strips or tiles of {segments.width}×{segments.height} pixels are more than the limit of {max_pixels:,}"
            " (--max-pixels)"
        )
    count = segments.rows * segments.columns * segments.planes
    if count > _MANY_SEGMENTS and height * width < _SMALL_SEGMENT * count:
        raise DecodeError(f"{count:,} strips or tiles of fewer than {_SMALL_SEGMENT} pixels: write it with larger ones")
    pixels = segments.height * segments.width
    codec = page.compression == JPEG or page.compression in JPEG_2000
    segment_bytes = count_segment_bytes(pixels, segments.pixel_bytes * segments.planes, samples, codec, rule)
    orientation = page.tags.valueof(_ORIENTATION)
    if orientation in FLIPS and FLIPS[orientation][2]:
        height, width = stored[::-1]
    return TiffImage(
        name, open, width, height, stored, orientation, segments, samples, int(page.compression), several, segment_bytes,
        max_pixels, decode, np.dtype(page.dtype).newbyteorder("="), rule,
    )  # fmt: skip


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


def _shift(page: Any, segments: Segments, plane: int) -> Segments:
    """Return where the segments of a later plane of a stack lie that has a table for the first one only."""
    size = segments.planes * page.imagelength * page.imagewidth * segments.pixel_bytes
    offsets, counts = segments.offsets, segments.byte_counts
    follow = all(offset + count == later for offset, count, later in zip(offsets, counts, offsets[1:], strict=False))
    if page.compression != _UNCOMPRESSED or page.is_tiled or not follow:
        raise DecodeError("a stack with a table for its first plane only, whose planes do not follow each other in the file")
    return replace(segments, offsets=tuple(offset + plane * size for offset in offsets))


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
    plain = (
        page.compression == _UNCOMPRESSED
        and page.predictor == 1
        and page.fillorder == 1
        and page.bitspersample in (8, 16, 32, 64)
    )
    plain = plain and not page.is_subsampled
    size = page.imagelength * page.imagewidth * strip.pixel_bytes
    complete = all(count >= size for count in strip.byte_counts) and max(strip.offsets) + size <= page.parent.filehandle.size
    return plain and complete and not page.is_tiled and strip.rows == 1


def _split_strips(page: Any, strip: Segments) -> tuple[Segments, Callable[[bytes, int], np.ndarray]]:
    """Split an image of one uncompressed strip a plane into many strips of about a megabyte."""
    dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    samples = strip.pixel_bytes // dtype.itemsize
    row_bytes = strip.width * strip.pixel_bytes
    height = max(1, min(strip.height, _STRIP_BYTES // row_bytes))
    starts = range(0, page.imagelength, height)
    offsets = tuple(offset + start * row_bytes for offset in strip.offsets for start in starts)
    sizes = tuple(min(height, page.imagelength - start) * row_bytes for _ in strip.offsets for start in starts)
    strips = replace(strip, height=height, rows=len(starts), offsets=offsets, byte_counts=sizes)
    return strips, lambda data, _: np.frombuffer(data, dtype).reshape(-1, strip.width, samples)
