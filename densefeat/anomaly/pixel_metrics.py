"""How well maps find the pixels of defects: AUROC of pixels, and overlap with each region of a defect (PRO).

PRO: Bergmann et al., "Uninformed Students", CVPR 2020 (arXiv 1911.02357), section 4.2. Values are counted in fixed bins, so
that memory does not grow with the images.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from scipy.ndimage import label

from densefeat.anomaly.alarms import GOOD
from densefeat.errors import DecodeError, UsageError
from densefeat.images import open_image

_BINS = 2**16
_MOST_FALSE = 0.3  # the rate of false positive pixels up to which PRO is integrated
_TOUCHING = np.ones((3, 3))  # pixels of a region touch, also by their corners
_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # kinds that keep 0 as 0
_ENDINGS = ("", "_mask")  # of a mask's name, behind its image's


class PixelMetrics:
    """Counts of pixels by the value of a map, of all images added so far. ``low``, ``high``: the range of all maps."""

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
        """Return the area under the ROC curve of pixels. Raises UsageError where all or none are of a defect."""
        self._check()
        return float(np.trapezoid(_rates(self.bad), _rates(self.good)))

    def pro(self) -> float:
        """Return the mean overlap with regions, over rates of false positive pixels up to 30 %, from 0 to 1."""
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
    """Find the mask of each image: ``DEFECT/NAME.png`` or ``DEFECT/NAME_mask.png`` for the key ``DEFECT/NAME.jpg``.

    None: an image without a mask, in a folder ``good``.

    Raises:
        UsageError: Other images without a mask, two masks for one image, or no mask at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"masks {str(folder)!r}: no such folder")
    known: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _SUFFIXES and file.is_file():
            known.setdefault(file.relative_to(folder).with_suffix("").as_posix(), []).append(file)
    masks: list[Path | None] = []
    lost: list[str] = []
    for key in keys:
        image = PurePosixPath(key)
        found = [file for ending in _ENDINGS for file in known.get(image.with_suffix("").as_posix() + ending, [])]
        if len(found) > 1:
            raise UsageError(f"masks {str(folder)!r}: {found[0].name!r} and {found[1].name!r} are both of {key!r}: keep one")
        if not found and image.parent.name != GOOD:
            lost.append(key)
        masks.append(found[0] if found else None)
    if lost:
        raise UsageError(
            f"masks {str(folder)!r}: none for {len(lost):,} images, {lost[0]!r} first: a mask has its image's path and name,"
            " and ends in .png; images without a defect need none in a folder that is called good"
        )
    if not any(masks):
        raise UsageError(f"masks {str(folder)!r}: no image has one")
    return masks


def read_mask(path: Path, width: int, height: int) -> np.ndarray:
    """Read a mask of an image of this size: bool ``(height, width)``, True where it is not black.

    Raises UsageError for a file that cannot be read, or of another size.
    """
    try:
        pixels = open_image(path, "pillow")
    except DecodeError as error:
        raise UsageError(f"mask {str(path)!r} cannot be read: {error}") from error
    values = np.asarray(pixels) if isinstance(pixels, Image.Image) else pixels.numpy().transpose(1, 2, 0)
    if values.shape[:2] != (height, width):
        raise UsageError(
            f"mask {str(path)!r} has {values.shape[1]}×{values.shape[0]} pixels, and its image {width}×{height}: make them the"
            " same"
        )
    return (values != 0).any(2)


def shrink_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Bring a mask to ``(size, size)`` by taking for each pixel the nearest one."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)) > 0
