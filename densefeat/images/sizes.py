"""The sizes of images, told from their headers."""

import io
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from densefeat.errors import DecodeError
from densefeat.images import npy, tiff
from densefeat.images.dicom import read_dicom
from densefeat.images.dicom_header import is_dicom
from densefeat.images.frames import count_frames
from densefeat.images.guards import check_image_size, decode_errors
from densefeat.images.memory import MEMORY
from densefeat.images.orientation import find_orientation, swaps_sides
from densefeat.images.pillow_images import is_animated, open_header
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from densefeat.images.sampled import HEAD_BYTES, Reader, find_reader
from densefeat.images.slide import Slide, open_slide
from densefeat.images.stream import ImageItem


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The size of an upright image, whether it is read by region, and whether its file has several images.

    ``edge``: of its tiles, in pixels of the image. ``pixel_size``: width and height of a pixel in microns, where
    the file says it.
    """

    width: int
    height: int
    by_region: bool = False
    several: bool = False
    edge: int = 0
    pixel_size: tuple[float, float] | None = None


def read_size(image: ImageItem, max_pixels: int) -> ImageSize:
    """Read the size of an image, and what else its header says. Raises DecodeError for one that cannot be decoded."""
    with MEMORY.hold(), io.BytesIO(image.read()) if image.open is None else image.open() as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if is_dicom(head) or head[:4] not in tiff.MAGIC:
            with decode_errors():
                if image.page is not None and image.page > count_frames(file, max_pixels):
                    raise DecodeError(f"page {image.page}: the file has fewer")
                file.seek(0)
                return _read_whole_size(head, file, max_pixels)
        slide = open_item_slide(image, _opener(image), image.key, max_pixels)
        # over a network each segment would cost megabytes of read-ahead
        by_region = image.open is not None and image.path() is not None
        if not by_region:
            check_image_size(slide.image.width, slide.image.height, max_pixels)
        return ImageSize(slide.image.width, slide.image.height, by_region, slide.image.several, pixel_size=slide.pixel_size)


def open_item_slide(
    image: ImageItem,
    opener: Callable[[], BinaryIO],
    name: Hashable,
    max_pixels: int,
    rule: PixelRule = PHOTOGRAPHS,
    copies: bool = False,
) -> Slide:
    """Open the item's image in a TIFF, as :func:`densefeat.images.slide.open_slide` does."""
    return open_slide(opener, name, max_pixels, rule, image.page, image.tables(), copies)


def _opener(image: ImageItem) -> Callable[[], BinaryIO]:
    """Return what opens the image's file; of an image that is none, its bytes are read once."""
    return image.open or partial(io.BytesIO, image.read())


def _read_whole_size(head: bytes, file: BinaryIO, max_pixels: int) -> ImageSize:
    """Read the size of an image that is decoded as a whole."""
    if is_dicom(head):
        image = read_dicom(file, max_pixels)
        return ImageSize(image.width, image.height, several=image.frames > 1)
    if head.startswith(npy.MAGIC):
        height, width = npy.read_size(file, max_pixels)
        return ImageSize(width, height)
    read = find_reader(head)
    return _read_pillow_size(file, max_pixels) if read is None else _read_sampled_size(read, file, max_pixels)


def _read_sampled_size(read: Reader, file: BinaryIO, max_pixels: int) -> ImageSize:
    image = read(file, with_pixels=False)
    check_image_size(image.width, image.height, max_pixels)
    return _make_size(image.width, image.height, image.orientation, image.several)


def _read_pillow_size(file: BinaryIO, max_pixels: int) -> ImageSize:
    image = open_header(file, max_pixels)
    return _make_size(*image.size, find_orientation(image.info), is_animated(image))


def _make_size(width: int, height: int, orientation: int, several: bool) -> ImageSize:
    return ImageSize(*((height, width) if swaps_sides(orientation) else (width, height)), several=several)
