"""Cut large images of any format into tiles, one position each: slides are read by region, other images decoded once."""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from densefeat.base import shorten_text
from densefeat.errors import DecodeError, UsageError
from densefeat.images.area import average_areas
from densefeat.images.byte_cache import ByteCache
from densefeat.images.decode import DecodedImage, copy_to_tensor, describe_range
from densefeat.images.guards import MAX_PIXELS
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from densefeat.images.sizes import ImageSize, open_item_slide, read_size
from densefeat.images.slide import Slide
from densefeat.images.stream import ImageItem, Source, make_unreadable_item

_SMALLEST_TILE = 32
_NEARLY_WHITE, _NEARLY_BLACK = 220, 15  # all channels at least, or at most, this
MAX_TILES = 4_000_000  # of an image: a slide of 200,000 × 200,000 pixels has 3.2 million of 224 pixels, half overlapping
_ENLARGED = 1.1  # an image may be so much coarser than wanted: scanners of one magnification differ by as much
_SQUARE = 0.01  # share by which a pixel may be wider than high, where tiles have a scale
_NO_SCALE = "the file does not say how many microns a pixel is"
_CACHE_BYTES = 2**28  # of cached segments, and again of images decoded as a whole
_HEADER_BYTES = 2**26  # of cached tables of slides' segments
_READERS = 8  # threads that read headers: they mostly wait for the disk
_HEADERS = 1024  # read at a time


@dataclass(frozen=True)
class Grid:
    """A grid of squares of ``tile`` pixels, ``stride`` apart, row by row from the top left corner.

    Where the last tile of a row or column does not reach the border, one more lies flush with it, so that every pixel is
    covered. There is none if the stride is larger than the tile: the sample is then meant to have gaps.
    """

    tile: int
    stride: int

    def count_along(self, length: int) -> int:
        """Count the tiles along an edge of ``length`` pixels."""
        steps, rest = divmod(length - self.tile, self.stride)
        return 1 + steps + (rest > 0 and self.stride <= self.tile)

    def count(self, width: int, height: int) -> int:
        return self.count_along(width) * self.count_along(height)

    def scale(self, edge: int) -> "Grid":
        """Return the grid of squares of ``edge`` pixels, with a stride that is as much larger or smaller."""
        return self if edge == self.tile else Grid(edge, max(1, round(self.stride * edge / self.tile)))

    def locate(self, number: int, width: int, height: int) -> tuple[int, int]:
        """Return x and y of an image's tile ``number``."""
        row, column = divmod(number, self.count_along(width))
        return min(column * self.stride, width - self.tile), min(row * self.stride, height - self.tile)


@dataclass(frozen=True, slots=True)
class TileItem:
    """A square of the image at ``position`` of the source of whole images, ``tile`` pixels once it is at the wanted scale."""

    image: ImageItem
    position: int
    x: int
    y: int
    size: ImageSize
    tile: int
    min_content: float
    cache: "ImageCache"

    @property
    def key(self) -> str:
        """The image's key, the same for all its tiles."""
        return self.image.key

    @property
    def label(self) -> str | None:
        return self.image.label

    @property
    def page(self) -> int | None:
        return self.image.page

    def decode(
        self, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS, rule: PixelRule = PHOTOGRAPHS
    ) -> DecodedImage | None:
        """Decode a contiguous tensor ``(C, tile, tile)``; None where less than ``min_content`` of it is content."""
        read = self.cache.read(self, decoder, max_pixels, rule)
        if self.min_content and _measure_content(read.pixels) < self.min_content:
            return None
        several = self.size.several and self.page is None and self.x == self.y == 0  # said once an image
        return replace(read, pixels=copy_to_tensor(read.pixels), x=self.x, y=self.y, page=self.page, several=several)


def _measure_content(pixels: np.ndarray) -> float:
    """Return the share of pixels ``(h, w, c)`` that are neither nearly white nor nearly black."""
    if pixels.dtype != np.uint8:
        pixels = pixels * 255
    content = (pixels.min(axis=2) < _NEARLY_WHITE) & (pixels.max(axis=2) > _NEARLY_BLACK)
    return np.count_nonzero(content) / content.size


class ImageCache:
    """The slides and images that are open or decoded at the moment, for all threads; pickled empty."""

    def __init__(self) -> None:
        self.slides: ByteCache[Slide] = ByteCache(_HEADER_BYTES)
        self.segments: ByteCache[np.ndarray] = ByteCache(_CACHE_BYTES)
        self.images: ByteCache[_WholeImage] = ByteCache(_CACHE_BYTES)

    def read(self, item: TileItem, decoder: str, max_pixels: int, rule: PixelRule) -> DecodedImage:
        """Read a tile, with pixels ``(tile, tile, c)`` in an array."""
        x, y, edge, tile = item.x, item.y, item.size.edge, item.tile
        if item.size.by_region:
            opener = cast(Callable[[], BinaryIO], item.image.open)
            name: Hashable = item.position, rule
            slide = self.slides.get(name, partial(open_item_slide, item.image, opener, name, max_pixels, rule, edge != tile))
            _check_size(item.size, slide.image.width, slide.image.height)
            pixels = slide.read_square(x, y, edge, tile, self.segments)
            converter = slide.choose_level(edge / tile).converter
            return DecodedImage(
                pixels, slide.image.width, slide.image.height, empty=slide.is_empty(x, y, edge, tile),
                missing=converter.missing, range=describe_range(slide.image.dtype, converter),
                bad_profile=converter.profile.bad,
            )  # fmt: skip
        whole_name = item.position, decoder, rule
        whole = self.images.get(whole_name, partial(_decode_whole, item.image, decoder, max_pixels, rule)).image
        _check_size(item.size, whole.width, whole.height)
        pixels = whole.pixels[y : y + edge, x : x + edge]
        return replace(whole, pixels=pixels if edge == tile else average_areas(pixels, (0, 0, edge, edge), tile))


@dataclass(frozen=True)
class _WholeImage:
    """A decoded image with pixels ``(h, w, c)`` in an array."""

    image: DecodedImage

    @property
    def nbytes(self) -> int:
        return self.image.pixels.nbytes


def _check_size(size: ImageSize, width: int, height: int) -> None:
    """Raise DecodeError where an image has changed since its tiles were counted."""
    if (width, height) != (size.width, size.height):
        raise DecodeError(f"{width}×{height} pixels, but {size.width}×{size.height} when tiles were counted")


def _decode_whole(image: ImageItem, decoder: str, max_pixels: int, rule: PixelRule) -> _WholeImage:
    decoded = image.decode(decoder, max_pixels, rule)
    pixels = decoded.pixels
    array = np.asarray(pixels) if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0).numpy()
    return _WholeImage(replace(decoded, pixels=array))


class TiledSource:
    """A source of the tiles of another source's images: image by image, and by y, then x, within an image.

    The constructor reads all headers once, so that every position is known and a job can resume at any of them. An image that
    no tile can be cut from (unreadable, too large to be decoded as a whole, smaller than a tile, of too many tiles) has one
    position, and DecodeError is raised when that is decoded.

    Args:
        source: A source of whole images, with a length.
        tile: Edge of a tile in pixels, at least 32. stride: From tile to tile; None: ``tile``.
        min_content: Share of a tile's pixels, 0 to 1, that must be neither nearly white nor nearly black.
        max_pixels: Limit for an image that has to be decoded as a whole, and for a strip or tile of one that has not.
        max_tiles: Limit for the tiles of an image.
        mpp: Microns a pixel of the tiles, to which squares of the image are averaged; None: those of the image, whatever it is.
            Places and sizes of images stay in pixels of the image.

    Raises:
        UsageError: An argument out of its range, or a source of unknown length; or ``mpp``, and no file says its own.
    """

    def __init__(
        self,
        source: Source,
        tile: int,
        stride: int | None = None,
        min_content: float = 0.0,
        max_pixels: int = MAX_PIXELS,
        max_tiles: int = MAX_TILES,
        mpp: float | None = None,
    ) -> None:
        _check_arguments(tile, stride, min_content, mpp)
        if source.length is None:
            raise UsageError("tiles need an input whose length is known beforehand: a folder, list or table, not a stream")
        self.source = source
        self.labelled = source.labelled
        self.grid = Grid(tile, tile if stride is None else stride)
        self.min_content, self.mpp = min_content, mpp
        self.failures: dict[int, DecodeError] = {}
        self.sizes = np.zeros((source.length, 2), np.int64)  # width and height, 0 for a failure
        self.by_region = np.zeros(source.length, bool)
        self.several = np.zeros(source.length, bool)
        self.edges = np.full(source.length, tile, np.int64)
        for position, size in enumerate(_measure_images(source, self.grid, mpp, max_pixels, max_tiles)):
            if isinstance(size, DecodeError):
                self.failures[position] = size
            else:
                self.sizes[position] = size.width, size.height
                self.by_region[position] = size.by_region
                self.several[position] = size.several
                self.edges[position] = size.edge
        if (
            mpp is not None
            and source.length
            and all(str(failure) == _NO_SCALE for failure in self.failures.values())
            and len(self.failures) == source.length
        ):
            raise UsageError(f"--mpp {mpp:g}: none of the images says how many microns a pixel is; leave it out")
        counts = (
            self.grid.scale(edge).count(width, height) if width else 1
            for (width, height), edge in zip(self.sizes.tolist(), self.edges.tolist(), strict=True)
        )
        self.ends = np.cumsum(np.fromiter(counts, np.int64, source.length))
        self.length: int | None = int(self.ends[-1]) if source.length else 0
        self.cache = ImageCache()

    def items(self, start: int, stop: int) -> Iterator[TileItem | ImageItem]:
        stop = min(stop, self.length or 0)
        if start >= stop:
            return
        first, last = np.searchsorted(self.ends, (start, stop - 1), side="right").tolist()
        begin = int(self.ends[first - 1]) if first else 0
        for position, image in enumerate(self.source.items(first, last + 1), first):
            end = int(self.ends[position])
            for number in range(max(start, begin) - begin, min(stop, end) - begin):
                yield self._make_item(position, cast(ImageItem, image), number)
            begin = end

    def _make_item(self, position: int, image: ImageItem, number: int) -> TileItem | ImageItem:
        if failure := self.failures.get(position):
            return replace(make_unreadable_item(image.key, image.label, str(failure), failure.stage), page=image.page)
        width, height = self.sizes[position].tolist()
        edge = int(self.edges[position])
        x, y = self.grid.scale(edge).locate(number, width, height)
        size = ImageSize(width, height, bool(self.by_region[position]), bool(self.several[position]), edge)
        return TileItem(image, position, x, y, size, self.grid.tile, self.min_content, self.cache)

    def keys(self) -> pa.LargeBinaryArray:
        """Return the image's key for each of its tiles. Slides have many: the fingerprint does without this."""
        counts = np.diff(self.ends, prepend=0)
        return self.source.keys().take(pa.array(np.repeat(np.arange(len(counts)), counts)))

    def fingerprint(self) -> str:
        """Hash keys, labels, sizes, tile and stride, which determine the tile at each position: SHA-256 in hexadecimal."""
        digest = hashlib.sha256(f"{self.source.fingerprint()} {self.grid.tile} {self.grid.stride} ".encode())
        digest.update(self.sizes.astype("<i8").tobytes())
        if self.mpp is not None:
            digest.update(b" mpp " + self.edges.astype("<i8").tobytes())
        return digest.hexdigest()


def _check_arguments(tile: int, stride: int | None, min_content: float, mpp: float | None) -> None:
    if tile < _SMALLEST_TILE:
        raise UsageError(f"tile {tile}: at least {_SMALLEST_TILE} pixels")
    if stride is not None and stride < 1:
        raise UsageError(f"stride {stride}: at least 1 pixel")
    if not 0 <= min_content <= 1:
        raise UsageError(f"min content {min_content}: a share between 0 and 1")
    if mpp is not None and not (isinstance(mpp, int | float) and 0 < mpp < math.inf):
        raise UsageError(f"mpp {shorten_text(repr(mpp))}: give microns a pixel, such as 0.5")


def _measure_images(
    source: Source, grid: Grid, mpp: float | None, max_pixels: int, max_tiles: int
) -> Iterator[ImageSize | DecodeError]:
    """Measure each image in order; an error says why no tile can be cut from it."""
    images = source.items(0, source.length or 0)
    with ThreadPoolExecutor(_READERS) as pool:
        while chunk := list(islice(images, _HEADERS)):
            yield from pool.map(lambda image: _measure_image(cast(ImageItem, image), grid, mpp, max_pixels, max_tiles), chunk)


def _measure_image(image: ImageItem, grid: Grid, mpp: float | None, max_pixels: int, max_tiles: int) -> ImageSize | DecodeError:
    try:
        size = read_size(image, max_pixels)
        size = replace(size, edge=grid.tile if mpp is None else _find_edge(grid.tile, mpp, size.pixel_size))
        grid = grid.scale(size.edge)
        if min(size.width, size.height) < grid.tile:
            return DecodeError(f"{size.width}×{size.height} pixels: smaller than a tile of {grid.tile}")
        tiles = grid.count(size.width, size.height)
        if tiles > max_tiles:
            return DecodeError(
                f"{size.width}×{size.height} pixels are {tiles:,} tiles, more than the limit of {max_tiles:,} (--max-tiles)"
            )
        return size
    except DecodeError as error:
        return DecodeError(str(error), error.stage)  # without the frames, which keep objects alive
    except Exception as error:  # file systems have errors of many kinds
        return DecodeError(f"{type(error).__name__}: {error}", "read")


def _find_edge(tile: int, wanted: float, pixel_size: tuple[float, float] | None) -> int:
    """Return the edge in pixels of an image of what becomes a tile of ``wanted`` microns a pixel."""
    if pixel_size is None:
        raise DecodeError(_NO_SCALE)
    if max(pixel_size) > (1 + _SQUARE) * min(pixel_size):
        raise DecodeError(f"pixels of {pixel_size[0]:.4g}×{pixel_size[1]:.4g} µm, which are no squares: resample it first")
    mpp = pixel_size[0]
    if mpp > _ENLARGED * wanted:
        raise DecodeError(f"{mpp:.4g} µm a pixel: coarser than --mpp {wanted:g}")
    if tile * wanted / mpp >= 2**31:
        raise DecodeError(f"{mpp:.4g} µm a pixel: no image is as large as a tile at --mpp {wanted:g}")
    return max(1, round(tile * wanted / mpp))
