"""Averaged areas equal sums over parts of pixels, worked out one by one."""

import numpy as np
import pytest

from densefeat.images.area import average_areas


def average_slowly(pixels: np.ndarray, box: tuple[float, ...], size: int) -> np.ndarray:
    """Sum what each pixel of the result covers, in fractions of pixels."""
    left, top, right, bottom = box
    result = np.zeros((size, size, pixels.shape[2]))
    for i in range(size):
        for j in range(size):
            y0, y1 = top + (bottom - top) * i / size, top + (bottom - top) * (i + 1) / size
            x0, x1 = left + (right - left) * j / size, left + (right - left) * (j + 1) / size
            area = 0.0
            for y in range(int(y0), min(int(np.ceil(y1)), pixels.shape[0])):
                for x in range(int(x0), min(int(np.ceil(x1)), pixels.shape[1])):
                    share = (min(y1, y + 1) - max(y0, y)) * (min(x1, x + 1) - max(x0, x))
                    result[i, j] += share * pixels[y, x]
                    area += share
            result[i, j] /= area
    return result


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 30, 30), 30),
        ((0, 0, 30, 30), 10),
        ((3, 2, 33, 22), 7),
        ((0.3, 1.7, 39.9, 29.2), 8),
        ((10.25, 10.25, 20.75, 20.75), 11),  # a little larger than it was
        ((10.5, 10.5, 11.5, 11.5), 1),
        ((0, 0, 40, 30), 1),
    ],
)
def test_areas(box: tuple[float, ...], size: int, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = average_slowly(pixels, box, size)
    assert np.abs(average_areas(pixels, box, size) - expected).max() <= 0.5 + 1e-6
    floats = average_areas(pixels.astype(np.float32), box, size)
    assert floats.dtype == np.float32
    assert np.allclose(floats, expected, rtol=1e-6)
    monkeypatch.setattr("densefeat.images.area._ROWS", 7)
    assert np.array_equal(average_areas(pixels.astype(np.float32), box, size), floats)


def test_whole_pixels_are_kept(pixels: np.ndarray) -> None:
    assert np.array_equal(average_areas(pixels, (5, 3, 25, 23), 20), pixels[3:23, 5:25])


def test_missing_pixels_are_left_out() -> None:
    pixels = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    pixels[0, 0] = pixels[2:, 2:] = np.nan
    expected = np.array([[(1 + 4 + 5) / 3, (2 + 3 + 6 + 7) / 4], [(8 + 9 + 12 + 13) / 4, np.nan]])
    assert np.allclose(average_areas(pixels, (0, 0, 4, 4), 2)[..., 0], expected, equal_nan=True)
