"""An image of a TIFF at several scales: squares of it are read from the smaller copy that is nearest to the wanted scale."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, BinaryIO

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.area import average_areas
from densefeat.images.byte_cache import ByteCache
from densefeat.images.guards import MAX_PIXELS
from densefeat.images.memory import MEMORY
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from densefeat.images.tiff import make_image, open_page, read_page
from densefeat.images.tiff_header import TableReader, count_table_bytes
from densefeat.images.tiff_image import TiffImage
from densefeat.images.tiff_pages import TiffEntry, TiffIndex, is_copy
from densefeat.images.tiff_scale import read_pixel_size

_NEAR = 1.01  # a copy may be so much coarser than wanted
_MAX_COPIES = 64
_AVERAGE_BYTES = 12  # a pixel and channel, that averaging takes


@dataclass(frozen=True)
class Slide:
    """An image with its smaller copies.

    Attributes:
        levels: The image, then its copies, the largest first.
        pixel_size: Width and height of the image's pixels in microns; None: the file does not say.
    """

    levels: tuple[TiffImage, ...]
    pixel_size: tuple[float, float] | None

    @property
    def nbytes(self) -> int:
        return sum(level.nbytes for level in self.levels)

    @property
    def image(self) -> TiffImage:
        return self.levels[0]

    def choose_level(self, scale: float) -> TiffImage:
        """Return the smallest copy that still has a pixel for ``scale`` pixels of the image."""
        return next(
            (level for level in reversed(self.levels) if self.image.width / level.width <= scale * _NEAR),
            self.image,
        )

    def read_square(self, x: int, y: int, edge: int, size: int, decoded: ByteCache[np.ndarray]) -> np.ndarray:
        """Read the square of ``edge`` pixels at ``x``, ``y`` of the image as pixels ``(size, size, c)``.

        ``decoded``: a cache of segments. Raises DecodeError as :meth:`TiffImage.region` does, and where there is no copy that
        is small enough for a square to be read in a piece.
        """
        level = self.choose_level(edge / size)
        if level is self.image and edge == size:
            return level.region(x, y, edge, edge, decoded)
        across, down = level.width / self.image.width, level.height / self.image.height
        box = x * across, y * down, (x + edge) * across, (y + edge) * down
        left, top, right, bottom = _enclose(box, level)
        width, height = right - left, bottom - top
        if width * height > level.max_pixels:
            raise DecodeError(
                f"a tile covers {width}×{height} pixels of the smallest copy that is large enough, more than the limit of"
                f" {level.max_pixels:,} (--max-pixels)"
            )
        channels = len(level.converter.white)
        with MEMORY.reserve(width * height * channels * _AVERAGE_BYTES, f"{width}×{height} pixels of TIFF"):
            pixels = level.region(left, top, width, height, decoded)
            return average_areas(pixels, (box[0] - left, box[1] - top, box[2] - left, box[3] - top), size)

    def is_empty(self, x: int, y: int, edge: int, size: int) -> bool:
        """Check whether the file has no bytes for any of the pixels that :meth:`read_square` reads."""
        level = self.choose_level(edge / size)
        across, down = level.width / self.image.width, level.height / self.image.height
        box = x * across, y * down, (x + edge) * across, (y + edge) * down
        left, top, right, bottom = _enclose(box, level)
        return level.is_empty(left, top, right - left, bottom - top)


def _enclose(box: tuple[float, float, float, float], level: TiffImage) -> tuple[int, int, int, int]:
    """Return the whole pixels that a box touches."""
    left, top, right, bottom = box
    return floor(left), floor(top), min(ceil(right), level.width), min(ceil(bottom), level.height)


def open_slide(
    open: Callable[[], BinaryIO],
    name: Hashable,
    max_pixels: int = MAX_PIXELS,
    rule: PixelRule = PHOTOGRAPHS,
    page: int | None = None,
    index: TiffIndex | None = None,
    copies: bool = True,
) -> Slide:
    """Open an image of a TIFF, with its smaller ``copies`` if they are wanted.

    The other arguments, and errors, are those of :func:`densefeat.images.tiff.open_tiff`.
    """
    with open_page(open, page, index) as (tiff, entry, several):
        image = make_image(open, (name, 0), tiff, entry, several, max_pixels, rule)
        levels = {image.width: image}
        for number, copy in enumerate(_list_copies(tiff, entry)[:_MAX_COPIES] if copies else [], 1):
            try:
                with MEMORY.reserve(count_table_bytes(copy.tables), "tables of TIFF"):
                    level = make_image(open, (name, number), tiff, copy, False, max_pixels, rule)
            except DecodeError:  # the image itself can be read
                continue
            if _is_alike(level, image):
                levels.setdefault(level.width, level)
        sizes = sorted(levels, reverse=True)
        return Slide(tuple(levels[width] for width in sizes), read_pixel_size(tiff, read_page(tiff, entry.tables[0])))


def _list_copies(tiff: Any, entry: TiffEntry) -> list[TiffEntry]:
    """List what may be smaller copies of an image: pages behind it, and subfiles of its own page or pages."""
    image = entry.tables[0]
    copies = [TiffEntry((table,)) for table in entry.copies]
    if image.has_subfiles and entry.plane is None:
        reader = TableReader(tiff.filehandle)
        offsets = [(read_page(tiff, table).subifds or ())[:_MAX_COPIES] for table in entry.tables]
        copies += [TiffEntry(tuple(map(reader.read, level)), names=entry.names) for level in zip(*offsets, strict=False)]
    return [copy for copy in copies if is_copy(copy.tables[0], image) and copy.tables[0].tiled == image.tiled]


def _is_alike(level: TiffImage, image: TiffImage) -> bool:
    """Check that the samples of a copy mean the same as those of its image; the thumbnail of a slide may be of another kind."""
    kinds = [
        (one.dtype, one.orientation, one.segments.planes * one.segments.pixel_bytes, one.samples.colours, one.samples.inverted)
        for one in (level, image)
    ]
    return kinds[0] == kinds[1]
