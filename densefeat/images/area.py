"""Resize pixels by averaging areas: a pixel of the result is the mean of what it covers, parts of pixels by their share."""

import numpy as np

_ROWS = 256  # that are in memory as floats at a time


def average_areas(pixels: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Resize a box of pixels ``(h, w, c)``, uint8 or float32, to ``(size, size, c)``.

    ``box``: left, top, right and bottom in pixels, which need not be whole numbers and must lie in the image. NaN, which stands
    for a missing pixel, is left out of a mean; a mean of nothing else is NaN.
    """
    if pixels.dtype == np.uint8:
        return np.rint(np.round(_average(pixels, box, size), 6)).astype(np.uint8)  # a half is a half, however it was added up
    missing = np.isnan(pixels)
    if not missing.any():
        return _average(pixels, box, size).astype(np.float32)
    sums, shares = _average(np.where(missing, 0, pixels), box, size), _average(~missing, box, size)
    return np.where(shares > 1e-9, sums / np.maximum(shares, 1e-9), np.nan).astype(np.float32)


def _average(pixels: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    left, top, right, bottom = box
    blocks = [pixels[row : row + _ROWS].swapaxes(0, 1) for row in range(0, len(pixels), _ROWS)]
    columns = np.concatenate([_average_along(block, left, right, size) for block in blocks], axis=1)
    return _average_along(columns.swapaxes(0, 1), top, bottom, size)


def _average_along(values: np.ndarray, start: float, stop: float, size: int) -> np.ndarray:
    """Return the means of ``size`` equal parts of a range of the first axis."""
    edges = np.linspace(start, stop, size + 1)
    whole = np.minimum(edges.astype(np.int64), len(values) - 1)
    sums = np.zeros((len(values) + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, dtype=np.float64, out=sums[1:])
    share = (edges - whole)[:, None, None]
    return np.diff(sums[whole] + share * values[whole], axis=0) * (size / (stop - start))
