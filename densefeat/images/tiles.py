"""Cut large images of any format into tiles, one position each: slides are read by region, other images decoded once."""

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from densefeat.errors import DecodeError, UsageError
from densefeat.images import png, tiff
from densefeat.images.byte_cache import ByteCache
from densefeat.images.decode import DecodedImage, copy_to_tensor, is_animated, open_header
from densefeat.images.guards import MAX_PIXELS, check_image_size, decode_errors
from densefeat.images.orientation import read_orientation, swaps_sides
from densefeat.images.stream import ImageItem, Source

_SMALLEST_TILE = 32
_NEARLY_WHITE, _NEARLY_BLACK = 220, 15  # all channels at least, or at most, this
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

    def locate(self, number: int, width: int, height: int) -> tuple[int, int]:
        """Return x and y of an image's tile ``number``."""
        row, column = divmod(number, self.count_along(width))
        return min(column * self.stride, width - self.tile), min(row * self.stride, height - self.tile)


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The size of an upright image, whether it is read by region, and whether its file has several images."""

    width: int
    height: int
    by_region: bool = False
    several: bool = False


@dataclass(frozen=True, slots=True)
class UnreadableItem:
    """An image that cannot be cut into tiles: it has one position, which cannot be decoded."""

    key: str
    label: str | None
    stage: str
    reason: str

    def decode(self, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS) -> DecodedImage | None:  # noqa: ARG002
        raise DecodeError(self.reason, self.stage)


@dataclass(frozen=True, slots=True)
class TileItem:
    """A square of the image at ``position`` of the source of whole images."""

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

    def decode(self, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS) -> DecodedImage | None:
        """Decode uint8 ``(3, tile, tile)``, contiguous; None where less than ``min_content`` of it is content."""
        pixels = self.cache.read(self, decoder, max_pixels)
        if self.min_content and _measure_content(pixels) < self.min_content:
            return None
        several = self.size.several and self.x == self.y == 0  # said once an image
        return DecodedImage(copy_to_tensor(pixels), self.size.width, self.size.height, self.x, self.y, several)


def _measure_content(pixels: np.ndarray) -> float:
    """Return the share of pixels ``(h, w, 3)`` that are neither nearly white nor nearly black."""
    content = (pixels.min(axis=2) < _NEARLY_WHITE) & (pixels.max(axis=2) > _NEARLY_BLACK)
    return np.count_nonzero(content) / content.size


class ImageCache:
    """The slides and images that are open or decoded at the moment, for all threads; pickled empty."""

    def __init__(self) -> None:
        self.slides: ByteCache[tiff.TiffImage] = ByteCache(_HEADER_BYTES)
        self.segments: ByteCache[np.ndarray] = ByteCache(_CACHE_BYTES)
        self.images: ByteCache[np.ndarray] = ByteCache(_CACHE_BYTES)

    def read(self, item: TileItem, decoder: str, max_pixels: int) -> np.ndarray:
        """Read the pixels of a tile: uint8 RGB ``(tile, tile, 3)``."""
        x, y, tile = item.x, item.y, item.tile
        if item.size.by_region:
            opener = cast(Callable[[], BinaryIO], item.image.open)
            slide = self.slides.get(item.position, partial(tiff.open_tiff, opener, item.position, max_pixels))
            _check_size(item.size, slide.width, slide.height)
            return slide.region(x, y, tile, tile, self.segments)
        whole = self.images.get((item.position, decoder), partial(_decode_whole, item.image, decoder, max_pixels))
        _check_size(item.size, whole.shape[1], whole.shape[0])
        return whole[y : y + tile, x : x + tile]


def _check_size(size: ImageSize, width: int, height: int) -> None:
    """Raise DecodeError where an image has changed since its tiles were counted."""
    if (width, height) != (size.width, size.height):
        raise DecodeError(f"{width}×{height} pixels, but {size.width}×{size.height} when tiles were counted")


def _decode_whole(image: ImageItem, decoder: str, max_pixels: int) -> np.ndarray:
    """Decode an image as a whole: uint8 RGB ``(H, W, 3)``."""
    pixels = image.decode(decoder, max_pixels).pixels
    return np.asarray(pixels) if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0).numpy()


class TiledSource:
    """A source of the tiles of another source's images: image by image, and by y, then x, within an image.

    The constructor reads all headers once, so that every position is known and a job can resume at any of them. An image that
    no tile can be cut from (unreadable, too large to be decoded as a whole, smaller than a tile) has one position, and
    DecodeError is raised when that is decoded.

    Args:
        source: A source of whole images, with a length.
        tile: Edge of a tile in pixels, at least 32. stride: From tile to tile; None: ``tile``.
        min_content: Share of a tile's pixels, 0 to 1, that must be neither nearly white nor nearly black.
        max_pixels: Limit for an image that has to be decoded as a whole, and for a strip or tile of one that has not.

    Raises:
        UsageError: An argument out of its range, or a source of unknown length.
    """

    def __init__(
        self, source: Source, tile: int, stride: int | None = None, min_content: float = 0.0, max_pixels: int = MAX_PIXELS
    ) -> None:
        _check_arguments(tile, stride, min_content)
        if source.length is None:
            raise UsageError("tiles need an input whose length is known beforehand: a folder, list or table, not a stream")
        self.source = source
        self.labelled = source.labelled
        self.grid = Grid(tile, tile if stride is None else stride)
        self.min_content = min_content
        self.failures: dict[int, DecodeError] = {}
        self.sizes = np.zeros((source.length, 2), np.int64)  # width and height, 0 for a failure
        self.by_region = np.zeros(source.length, bool)
        self.several = np.zeros(source.length, bool)
        for position, size in enumerate(_measure_images(source, tile, max_pixels)):
            if isinstance(size, DecodeError):
                self.failures[position] = size
            else:
                self.sizes[position] = size.width, size.height
                self.by_region[position] = size.by_region
                self.several[position] = size.several
        counts = (1 if not width else self.grid.count(width, height) for width, height in self.sizes.tolist())
        self.ends = np.cumsum(np.fromiter(counts, np.int64, source.length))
        self.length: int | None = int(self.ends[-1]) if source.length else 0
        self.cache = ImageCache()

    def items(self, start: int, stop: int) -> Iterator[TileItem | UnreadableItem]:
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

    def _make_item(self, position: int, image: ImageItem, number: int) -> TileItem | UnreadableItem:
        if failure := self.failures.get(position):
            return UnreadableItem(image.key, image.label, failure.stage, str(failure))
        width, height = self.sizes[position].tolist()
        x, y = self.grid.locate(number, width, height)
        size = ImageSize(width, height, bool(self.by_region[position]), bool(self.several[position]))
        return TileItem(image, position, x, y, size, self.grid.tile, self.min_content, self.cache)

    def keys(self) -> pa.LargeBinaryArray:
        """Return the image's key for each of its tiles. Slides have many: the fingerprint does without this."""
        counts = np.diff(self.ends, prepend=0)
        return self.source.keys().take(pa.array(np.repeat(np.arange(len(counts)), counts)))

    def fingerprint(self) -> str:
        """Hash keys, labels, sizes, tile and stride, which determine the tile at each position: SHA-256 in hexadecimal."""
        digest = hashlib.sha256(f"{self.source.fingerprint()} {self.grid.tile} {self.grid.stride} ".encode())
        digest.update(self.sizes.astype("<i8").tobytes())
        return digest.hexdigest()


def _check_arguments(tile: int, stride: int | None, min_content: float) -> None:
    if tile < _SMALLEST_TILE:
        raise UsageError(f"tile {tile}: at least {_SMALLEST_TILE} pixels")
    if stride is not None and stride < 1:
        raise UsageError(f"stride {stride}: at least 1 pixel")
    if not 0 <= min_content <= 1:
        raise UsageError(f"min content {min_content}: a share between 0 and 1")


def _measure_images(source: Source, tile: int, max_pixels: int) -> Iterator[ImageSize | DecodeError]:
    """Measure each image in order; an error says why no tile can be cut from it."""
    images = source.items(0, source.length or 0)
    with ThreadPoolExecutor(_READERS) as pool:
        while chunk := list(islice(images, _HEADERS)):
            yield from pool.map(lambda image: _measure_image(cast(ImageItem, image), tile, max_pixels), chunk)


def _measure_image(image: ImageItem, tile: int, max_pixels: int) -> ImageSize | DecodeError:
    try:
        size = _read_size(image, max_pixels)
        if min(size.width, size.height) < tile:
            return DecodeError(f"{size.width}×{size.height} pixels: smaller than a tile of {tile}")
        return size
    except DecodeError as error:
        return DecodeError(str(error), error.stage)  # without the frames, which keep objects alive
    except Exception as error:  # file systems have errors of many kinds
        return DecodeError(f"{type(error).__name__}: {error}", "read")


def _read_size(image: ImageItem, max_pixels: int) -> ImageSize:
    with io.BytesIO(image.read()) if image.open is None else image.open() as file:
        head = file.read(8)
        file.seek(0)
        if head[:4] not in tiff.MAGIC:
            with decode_errors():
                return _read_png_size(file, max_pixels) if head == png.MAGIC else _read_pillow_size(file, max_pixels)
        slide = tiff.open_tiff(_opener(image), image.key, max_pixels)
        # over a network each segment would cost megabytes of read-ahead
        by_region = image.open is not None and image.path() is not None
        if not by_region:
            check_image_size(slide.width, slide.height, max_pixels)
        slide.check_samples()
        return ImageSize(slide.width, slide.height, by_region, slide.several)


def _opener(image: ImageItem) -> Callable[[], BinaryIO]:
    """Return what opens the image's file; of an image that is none, its bytes are read once."""
    return image.open or partial(io.BytesIO, image.read())


def _read_png_size(file: BinaryIO, max_pixels: int) -> ImageSize:
    image = png.read_png(file, with_pixels=False)
    check_image_size(image.width, image.height, max_pixels)
    return _make_size(image.width, image.height, image.orientation, image.animated)


def _read_pillow_size(file: BinaryIO, max_pixels: int) -> ImageSize:
    image = open_header(file, max_pixels)
    return _make_size(*image.size, read_orientation(image), is_animated(image))


def _make_size(width: int, height: int, orientation: int, several: bool) -> ImageSize:
    return ImageSize(*((height, width) if swaps_sides(orientation) else (width, height)), several=several)
