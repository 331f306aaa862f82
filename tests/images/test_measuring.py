"""The pass over images that measures their values."""

import io

import numpy as np
import pytest

from densefeat.images.measuring import measure_values
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.pixel_statistics import PixelStatistics
from densefeat.images.stream import ImageItem


def test_no_more_images_than_threads_are_in_memory() -> None:
    images = [np.full((4, 4), value, np.uint16) for value in range(100)]
    read: list[int] = []
    done = [0]
    waiting: list[int] = []

    def make_item(position: int) -> ImageItem:
        def read_file() -> bytes:
            read.append(position)
            waiting.append(len(read) - done[0])
            file = io.BytesIO()
            np.save(file, images[position])
            return file.getvalue()

        return ImageItem(str(position), None, read_file)

    def advance(count: int) -> bool:
        done[0] += count
        return True

    statistics = measure_values(map(make_item, range(100)), PixelRule("p0:p100"), PixelStatistics(), 3, advance=advance)
    assert (done, max(waiting)) == ([100], 3)
    assert statistics.find_bounds(0, 100, together=True) == ((0, 99),)


def test_images_that_are_left_out_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(16, dtype=np.uint16).reshape(4, 4))
    contents = {"small": file.getvalue(), "damaged": b"x", "none": b""}
    items = (ImageItem(key, None, lambda data=data: data) for key, data in contents.items())
    statistics = measure_values(items, PixelRule("p0:p100"), PixelStatistics(), 1)
    assert statistics.find_bounds(0, 100, together=True) == ((0, 15),)
    assert "2 images cannot be decoded, and are left out of what is measured, such as damaged: not an image" in caplog.text
