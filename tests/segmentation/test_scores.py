"""Intersection over union against scikit-learn's, and intervals over images."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from densefeat.segmentation.masks import IGNORED
from densefeat.segmentation.scores import _compute_iou, compute_mean_iou, count_overlaps, measure


def draw_masks(count: int = 6, classes: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    pairs = []
    for i in range(count):
        truth = generator.integers(0, classes, (7 + i, 9), np.uint8)
        predicted = np.where(generator.random(truth.shape) < 0.3, generator.integers(0, classes, truth.shape, np.uint8), truth)
        truth[generator.random(truth.shape) < 0.2] = IGNORED
        pairs.append((predicted.astype(np.uint8), truth))
    return pairs


def test_iou_equals_scikit_learns() -> None:
    pairs = draw_masks()
    counts = np.stack([count_overlaps(predicted, truth, 4) for predicted, truth in pairs])
    known = [(predicted[truth != IGNORED], truth[truth != IGNORED]) for predicted, truth in pairs]
    predicted, truth = (np.concatenate(each) for each in zip(*known, strict=True))
    expected = jaccard_score(truth, predicted, average=None)
    measured = measure(counts, seed=0)
    np.testing.assert_allclose(measured["values"]["iou"], expected, rtol=1e-12)
    assert measured["values"]["mean_iou"] == pytest.approx(expected.mean(), rel=1e-12)
    assert measured["values"]["pixel_accuracy"] == pytest.approx(accuracy_score(truth, predicted), rel=1e-12)
    per_image = [jaccard_score(t, p, average="macro") for p, t in known]
    np.testing.assert_allclose(compute_mean_iou(counts), per_image, rtol=1e-12)


def test_a_class_in_neither_mask_is_undefined_and_one_in_a_single_mask_is_zero() -> None:
    counts = count_overlaps(np.array([[0, 2]], np.uint8), np.array([[0, 0]], np.uint8), 4)
    np.testing.assert_array_equal(_compute_iou(counts), [0.5, np.nan, 0, np.nan])
    assert compute_mean_iou(counts) == 0.25
    nothing = count_overlaps(np.array([[0]], np.uint8), np.array([[IGNORED]], np.uint8), 2)
    assert np.isnan(compute_mean_iou(nothing))


def test_intervals_are_percentiles_of_resampled_images() -> None:
    counts = np.stack([count_overlaps(*pair, 4) for pair in draw_masks(12)])
    ends = measure(counts, seed=3)["intervals"]["mean_iou"]
    generator = np.random.default_rng(77)  # other resamples: the ends agree as far as 4,000 of them tell
    spread = [compute_mean_iou(counts[generator.integers(0, 12, 12)].sum(0)) for _ in range(4_000)]
    np.testing.assert_allclose(ends, np.percentile(spread, (2.5, 97.5)), atol=0.006)
    assert ends == measure(counts, seed=3)["intervals"]["mean_iou"]
    assert ends != measure(counts, seed=4)["intervals"]["mean_iou"]


def test_a_single_image_has_no_interval() -> None:
    measured = measure(count_overlaps(*draw_masks(1)[0], 4)[None], seed=0)
    assert None not in (measured["values"]["mean_iou"], *measured["values"]["iou"])
    assert measured["intervals"] == {"mean_iou": None, "iou": [None] * 4, "pixel_accuracy": None}


def test_a_class_that_no_image_has_has_no_interval() -> None:
    counts = np.stack([count_overlaps(*pair, 5) for pair in draw_masks()])
    measured = measure(counts, seed=0)
    assert (measured["values"]["iou"][4], measured["intervals"]["iou"][4]) == (None, None)
    assert measured["values"]["mean_iou"] is not None
