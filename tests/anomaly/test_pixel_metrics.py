"""Metrics against plain implementations over all thresholds, and which mask belongs to which image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from densefeat.anomaly.pixel_metrics import PixelMetrics, match_masks, shrink_mask
from densefeat.errors import UsageError


def integrate_pro(maps: np.ndarray, masks: np.ndarray) -> float:
    """PRO as it is written down: at every threshold the mean share of each region, over false positive rates up to 0.3."""
    regions = [
        (i, labels == number)
        for i, mask in enumerate(masks)
        for labels, count in [label(mask, np.ones((3, 3)))]
        for number in range(1, count + 1)
    ]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        overlap = np.mean([found[i][region].mean() for i, region in regions])
        points.append((found[~masks].mean(), overlap))
    x, y = np.array(points).T
    fine = np.linspace(0, 0.3, 100_001)
    return float(np.interp(fine, x, y).mean())


@pytest.fixture
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Maps ``(4, 24, 30)`` that are higher in most of the regions of the masks."""
    generator = np.random.default_rng(0)
    masks = np.zeros((4, 24, 30), bool)
    masks[0, 2:9, 3:12] = masks[0, 15:17, 20:22] = masks[1, 0, 0] = masks[2, 5:20, 5:8] = True
    masks[0, 17, 22] = True  # touches the second region by a corner
    return generator.normal(size=masks.shape) + 1.5 * masks, masks


def test_metrics(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    maps, masks = pixels
    metrics = PixelMetrics(float(maps.min()), float(maps.max()))
    for values, mask in zip(maps, masks, strict=True):
        metrics.add(values, mask)
    assert metrics.regions == 4
    assert metrics.auroc() == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-4)
    assert metrics.pro() == pytest.approx(integrate_pro(maps, masks), abs=1e-3)


def test_perfect_and_constant_maps(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    _, masks = pixels
    perfect, constant = PixelMetrics(0, 1), PixelMetrics(5, 5)
    for mask in masks:
        perfect.add(mask.astype(float), mask)
        constant.add(np.full(mask.shape, 5.0), mask)
    assert (perfect.auroc(), perfect.pro()) == (1, pytest.approx(1))
    assert constant.auroc() == 0.5
    assert constant.pro() == pytest.approx(0.15)  # by chance


def test_no_defects() -> None:
    metrics = PixelMetrics(0, 1)
    metrics.add(np.zeros((3, 3)), np.zeros((3, 3), bool))
    with pytest.raises(UsageError, match="the masks need pixels that are of a defect"):
        metrics.auroc()


def write_masks(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), 255).save(folder / name)
    return folder


def test_masks_are_matched(tmp_path: Path) -> None:
    write_masks(tmp_path, "crack/1.png", "crack/2_mask.png", "deep/er/3.png", "other.png")
    keys = ["crack/1.jpg", "good/1.jpg", "deep/er/3.tif", "crack/2.jpg"]
    found = match_masks(keys, tmp_path)
    assert [None if file is None else file.relative_to(tmp_path).as_posix() for file in found] == [
        "crack/1.png",
        None,
        "deep/er/3.png",
        "crack/2_mask.png",
    ]


@pytest.mark.parametrize(
    ("keys", "masks", "message"),
    [
        (["a/1.jpg", "a/2.jpg"], ["a/1.png"], "none for 1 images, 'a/2.jpg' first"),
        (["a/1.jpg"], ["a/1.png", "a/1_mask.png"], "have one name"),
        (["good/1.jpg"], ["a/1.png"], "no image has a mask"),
        (["../a/1.jpg"], ["a/1.png"], "no image has a mask"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, keys: list[str], masks: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        match_masks(keys, write_masks(tmp_path / "masks", *masks))


def test_masks_are_shrunk() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2, 5] = True
    assert np.array_equal(shrink_mask(np.repeat(np.repeat(mask, 2, 0), 2, 1)[:, :12], 6), mask[:, :6])
