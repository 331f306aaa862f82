"""TIFFs written by tifffile, opened, and compared with the pixels that they should have."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from densefeat.images.byte_cache import ByteCache
from densefeat.images.tiff import open_tiff
from densefeat.images.tiff_image import TiffImage

BOXES = [(0, 0, 70, 50), (0, 0, 32, 32), (31, 17, 35, 32), (69, 49, 1, 1), (38, 18, 32, 32), (0, 33, 70, 3)]  # x, y, w, h
TILED = {"tile": (32, 16)}


def crop_photo(photographs: list[Image.Image]) -> np.ndarray:
    """(50, 70, 3): no multiple of any tile."""
    return np.asarray(photographs[2].crop((100, 100, 170, 150)))


def written(path: Path, pixels: np.ndarray, **options: Any) -> TiffImage:
    tifffile.imwrite(path, pixels, **options)
    return opened(path)


def opened(path: Path, max_pixels: int = 10**6) -> TiffImage:
    return open_tiff(partial(open, path, "rb"), path.name, max_pixels)


def region(slide: TiffImage, *box: int) -> np.ndarray:
    pixels = slide.region(*box, ByteCache(10**6))
    assert pixels.dtype == np.uint8
    return pixels


def assert_equal_everywhere(slide: TiffImage, pixels: np.ndarray) -> None:
    assert (slide.height, slide.width) == pixels.shape[:2]
    for x, y, width, height in BOXES:
        assert np.array_equal(region(slide, x, y, width, height), pixels[y : y + height, x : x + width])


def change(path: Path, **tags: Any) -> None:
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name, value in tags.items():
            tiff.pages.first.tags[name].overwrite(value, dtype="I" if isinstance(value, list) else None)
