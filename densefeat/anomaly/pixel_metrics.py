"""How well maps find the pixels of defects: AUROC of pixels, and per-region overlap (PRO).

PRO: Bergmann et al., "Uninformed Students", CVPR 2020 (arXiv 1911.02357), section 4.2. Values are counted in fixed bins, so
that memory does not grow with the number of images.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from scipy.ndimage import label

from densefeat.anomaly.alarms import GOOD
from densefeat.errors import UsageError
from densefeat.labels import find_masks

_BINS = 2**16
_MOST_FALSE = 0.3  # the rate of false positive pixels up to which PRO is integrated
_TOUCHING = np.ones((3, 3))  # pixels of a region touch, also by their corners


class PixelMetrics:
    """Counts of pixels by map value, over all images added so far. ``low``, ``high``: the range of all maps' values."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, max(high, low + 1e-12)
        self.good, self.bad = np.zeros(_BINS), np.zeros(_BINS)
        self.overlap = np.zeros(_BINS)  # shares of regions
        self.regions = 0

    def add(self, values: np.ndarray, mask: np.ndarray) -> None:
        """Add an image. ``values``: its map, ``(H, W)``; ``mask``: bool ``(H, W)``, True where the defect is."""
        scaled = (values - self.low) / (self.high - self.low) * _BINS
        bins = np.clip(scaled.astype(np.int64), 0, _BINS - 1)
        self.good += np.bincount(bins[~mask], minlength=_BINS)
        self.bad += np.bincount(bins[mask], minlength=_BINS)
        regions, count = label(mask, _TOUCHING)
        inside = regions > 0
        sizes = np.bincount(regions[inside], minlength=count + 1)
        self.overlap += np.bincount(bins[inside], 1 / sizes[regions[inside]], _BINS)
        self.regions += count

    def auroc(self) -> float:
        """Return the area under the ROC curve of pixels. Raises UsageError where all pixels are of defects, or none."""
        self._check()
        return float(np.trapezoid(_rates(self.bad), _rates(self.good)))

    def pro(self) -> float:
        """Return PRO, from 0 to 1: the mean overlap with regions, averaged over false-positive rates up to 30 %."""
        self._check()
        false, overlap = _rates(self.good), _rates(self.overlap)
        within = false < _MOST_FALSE
        x = np.append(false[within], _MOST_FALSE)
        y = np.append(overlap[within], np.interp(_MOST_FALSE, false, overlap))
        return float(np.trapezoid(y, x) / _MOST_FALSE)

    def _check(self) -> None:
        if not self.regions or not self.good.any():
            raise UsageError("pixels cannot be judged: the masks need pixels that are of a defect, and others")


def _rates(counts: np.ndarray) -> np.ndarray:
    """Return the share of values at or above each bin, from above the last one (0) to the first (1)."""
    return np.append(0, np.cumsum(counts[::-1]) / counts.sum())


def match_masks(keys: Sequence[str], folder: str | Path) -> list[Path | None]:
    """Find the mask of each image, as :func:`densefeat.labels.find_masks` does; None for an image without a mask.

    Raises UsageError as that does, and for images without a mask that are not in a folder ``good``.
    """
    found = find_masks(keys, Path(folder)).by_key
    lost = [key for key in keys if key not in found and not is_in_good_folder(key)]
    if lost:
        raise UsageError(
            f"masks {str(folder)!r}: none for {len(lost):,} images, {lost[0]!r} first: a mask has its image's path and name,"
            " and ends in .png; images without a defect need none in a folder that is called good"
        )
    return [found.get(key) for key in keys]


def is_in_good_folder(key: str) -> bool:
    """Check whether an image is in a folder called ``good``, and so needs no mask."""
    return PurePosixPath(key).parent.name == GOOD


def shrink_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask to bool ``(size, size)``; each pixel takes the value of the nearest one."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)) > 0
