"""Intersection over union, with intervals over images."""

from typing import Any

import numpy as np

from densefeat.probing import draw_resamples, find_interval
from densefeat.segmentation.masks import IGNORED

_RESAMPLES = 1000


def count_overlaps(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Count the pixels of each class in both masks, in the prediction and in the truth, int64 ``(3, classes)``.

    ``predicted``, ``truth``: uint8 ``(H, W)``; pixels whose truth is IGNORED do not count.
    """
    known = truth != IGNORED
    predicted, truth = predicted[known], truth[known]
    both = predicted[predicted == truth]
    return np.stack([np.bincount(values, minlength=classes) for values in (both, predicted, truth)])


def _compute_iou(counts: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of each class, float64 ``(…, classes)``; NaN for one that is in neither mask.

    ``counts``: of :func:`count_overlaps`, summed over images, ``(…, 3, classes)``.
    """
    both, predicted, truth = np.moveaxis(counts.astype(np.float64), -2, 0)
    union = predicted + truth - both
    return np.divide(both, union, out=np.full_like(both, np.nan), where=union > 0)


def compute_mean_iou(counts: np.ndarray) -> np.ndarray:
    """Average :func:`_compute_iou` over the classes that are defined, float64 ``(…)``; NaN where none is."""
    values = _compute_iou(counts)
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0).sum(-1)
    return np.divide(total, defined.sum(-1), out=np.full_like(total, np.nan), where=defined.any(-1))


def _measure_all(counts: np.ndarray) -> dict[str, np.ndarray]:
    truth = counts[..., 2, :].sum(-1).astype(np.float64)
    accuracy = np.divide(counts[..., 0, :].sum(-1), truth, out=np.full_like(truth, np.nan), where=truth > 0)
    return {"mean_iou": compute_mean_iou(counts), "iou": _compute_iou(counts), "pixel_accuracy": accuracy}


def measure(counts: np.ndarray, seed: int) -> dict[str, Any]:
    """Measure predictions of n images: ``mean_iou``, ``iou`` of each class and ``pixel_accuracy``, over all their pixels.

    ``counts``: int64 ``(n, 3, classes)``, the counts of each image. Returns the ``values`` and the ``intervals``: the
    percentiles 2.5 and 97.5 over 1000 resamples of the images, drawn with replacement (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, section 13.3). Images are drawn rather than pixels, for the pixels of an image are alike. A class that
    is absent from a resample is left out of it. None stands for what is undefined, such as the intervals of a single image.
    """
    drawn = draw_resamples(len(counts), _RESAMPLES, seed) if len(counts) > 1 else np.zeros((1, 1), np.uint8)
    spread = _measure_all(np.tensordot(drawn.T.astype(np.int64), counts, 1))
    values = _measure_all(counts.sum(0))
    intervals = {name: _find_ends(each) for name, each in spread.items()}
    return {"values": {name: _to_list(each) for name, each in values.items()}, "intervals": intervals}


def _find_ends(values: np.ndarray) -> Any:
    """Return the ends of an interval, or of one for each column."""
    return [find_interval(column) for column in values.T] if values.ndim == 2 else find_interval(values)


def _to_list(values: np.ndarray) -> Any:
    return [_to_list(each) for each in values] if values.ndim else None if np.isnan(values) else float(values)
