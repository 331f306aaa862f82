"""The positions of a grid: their classes, read off the masks, and the sample that heads are fitted on."""

from collections.abc import Sequence

import numpy as np

from densefeat.segmentation.masks import IGNORED


def label_positions(codes: np.ndarray, shape: tuple[int, int], classes: int) -> np.ndarray:
    """Give each position of a grid the class with the largest area in its part of the image.

    Args:
        codes: uint8 ``(H, W)``, classes from 0, and IGNORED.
        shape: The grid's height and width. It divides the image into equal parts, whose sides need not be whole pixels.

    Returns:
        uint8 ``shape``. Of two classes of equal area the first; IGNORED where more than half of the part is ignored.
    """
    rows, columns = (_overlap(parts, pixels) for parts, pixels in zip(shape, codes.shape, strict=True))
    largest = np.full(shape, -1, np.float32)
    labels = np.full(shape, IGNORED, np.uint8)
    present = np.flatnonzero(np.bincount(codes.ravel(), minlength=IGNORED + 1))
    for code in present[present < classes]:
        area = rows @ (codes == code).astype(np.float32) @ columns.T
        labels[area > largest] = code
        np.maximum(largest, area, out=largest)
    if IGNORED in present:
        area = rows @ (codes == IGNORED).astype(np.float32) @ columns.T
        labels[area > 0.5 * np.outer(rows.sum(1), columns.sum(1))] = IGNORED
    return labels


def _overlap(parts: int, pixels: int) -> np.ndarray:
    """Return how much of each pixel is in each of so many equal parts of a side, float32 ``(parts, pixels)``."""
    ends = np.arange(parts + 1) * (pixels / parts)
    low, high = np.arange(pixels), np.arange(1, pixels + 1)
    return np.clip(np.minimum(ends[1:, None], high) - np.maximum(ends[:-1, None], low), 0, None).astype(np.float32)


def count_classes(labels: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Count the positions of each class in several images, int64 ``(classes,)``."""
    return sum((np.bincount(each.ravel(), minlength=256)[:classes] for each in labels), np.zeros(classes, np.int64))


def draw_positions(labels: Sequence[np.ndarray], classes: int, most: int, seed: int) -> list[np.ndarray]:
    """Draw up to ``most`` positions of several images, the same number of each class or, of a rare class, all.

    What a rare class leaves of its share goes to the others. Returns for each image indices in its flattened grid, ascending;
    the same labels and seed give the same draw.
    """
    flat = np.concatenate([each.ravel() for each in labels])
    image = np.repeat(np.arange(len(labels)), [each.size for each in labels])
    first = np.cumsum([0, *(each.size for each in labels)])
    generator = np.random.default_rng(seed)
    quotas = _share_out(count_classes(labels, classes), most)
    drawn = [generator.permutation(np.flatnonzero(flat == code))[:quota] for code, quota in enumerate(quotas.tolist())]
    rows = np.sort(np.concatenate(drawn))
    return [rows[image[rows] == number] - first[number] for number in range(len(labels))]


def _share_out(counts: np.ndarray, most: int) -> np.ndarray:
    """Divide ``most`` among classes as equally as their ``counts`` allow, int64 of the same shape."""
    quotas, left = np.zeros_like(counts), most
    for place, code in enumerate(np.argsort(counts, kind="stable")):
        quotas[code] = min(counts[code], left // (len(counts) - place))
        left -= quotas[code]
    return quotas
