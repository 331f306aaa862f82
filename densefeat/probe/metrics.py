"""How good predictions are: from counts of hits, and from ranks, for any number of resamples of the rows at once."""

import numpy as np
from scipy.sparse import csr_array

from densefeat.errors import UsageError
from densefeat.labels import Targets, Task
from densefeat.probe.rows import pieces

MAIN: dict[Task, str] = {"single": "top1", "multi": "map", "regression": "r2"}
_RANKED = ("auroc", "map")
_PIECE_VALUES = 2**23  # counts turned into floats at a time

_Measured = dict[str, np.ndarray]


def compute_metrics(targets: Targets, scores: np.ndarray) -> dict[str, float | None]:
    """Of predictions, by name; None where undefined.

    A class without positive rows is left out of all means over classes; so is one without negatives out of AUROC.

    single: ``top1``, ``top5`` (of more than five classes), ``balanced_accuracy`` (mean recall) and ``macro_f1`` in per cent;
    ``auroc``, one class against the rest by softmax of the scores, 0 to 1. Of equal scores the earlier class comes first.
    multi: ``map`` (mean average precision) and ``macro_f1`` (predicted: score above 0) in per cent; ``auroc``, 0 to 1.
    regression: ``r2``, and ``rmse`` and ``mae`` in units of the targets.

    Args:
        scores: single and multi ``(n, K)``, higher is more likely; regression ``(n,)``.

    Raises:
        UsageError: Scores of another shape, no rows, or scores of NaN or infinities.
    """
    once = np.ones((len(targets), 1), np.uint8)
    measured = resampled(targets, scores, once)
    return {name: None if np.isnan(values[0]) else float(values[0]) for name, values in measured.items()}


def resampled(targets: Targets, scores: np.ndarray, counts: np.ndarray, ranked: int | None = None) -> _Measured:
    """Every metric ``(R,)`` float64 where row i counts ``counts[i, r]`` times (``(n, R)`` uint8); NaN where undefined.

    ``ranked``: those from ranks for so many resamples only, the first ones (0: of length 0); None: for all.
    """
    _check_scores(targets, scores)
    if targets.task == "regression":
        return _of_numbers(targets.values, scores, counts)
    counted = _of_classes(targets, scores, counts) if targets.task == "single" else _of_labels(targets, scores, counts)
    return counted | _of_ranks(targets, scores, counts[:, :ranked])


def main_metric(targets: Targets, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The one of :data:`MAIN`, as :func:`resampled` gives it, without the work for the others."""
    if targets.task == "single":
        _check_scores(targets, scores)
        return 100 * _total(counts, scores.argmax(1) == targets.values) / _total(counts)
    if targets.task == "multi":
        _check_scores(targets, scores)
        return _of_ranks(targets, scores, counts)["map"]
    return resampled(targets, scores, counts)["r2"]


def _check_scores(targets: Targets, scores: np.ndarray) -> None:
    shape = (len(targets),) if targets.task == "regression" else (len(targets), len(targets.classes))
    if scores.shape != shape:
        raise UsageError(f"scores of shape {scores.shape}: {targets.task} targets of this size take {shape}")
    if not len(targets):
        raise UsageError("no rows to measure predictions on: give at least 1")
    if not np.isfinite(scores).all():
        raise UsageError(f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} scores are NaN or infinite")


def _of_classes(targets: Targets, scores: np.ndarray, counts: np.ndarray) -> _Measured:
    y, classes = targets.values, len(targets.classes)
    predicted, rows = scores.argmax(1), _total(counts)
    hit = predicted == y
    measured = {"top1": 100 * _total(counts, hit) / rows}
    if classes > 5:
        earlier = np.concatenate([_places(scores[piece], y[piece]) for piece in pieces(scores)])
        measured["top5"] = 100 * _total(counts, earlier < 5) / rows
    support, guessed = _by_class(y, counts, classes), _by_class(predicted, counts, classes)
    right = _by_class(y[hit], counts[hit], classes)
    present = support > 0
    measured["balanced_accuracy"] = 100 * _mean_where(right / np.maximum(support, 1), present)
    measured["macro_f1"] = 100 * _mean_where(2 * right / np.maximum(support + guessed, 1), present)
    return measured


def _of_labels(targets: Targets, scores: np.ndarray, counts: np.ndarray) -> _Measured:
    predicted, wanted = scores > 0, targets.values
    support, guessed, right = (_weighted(marks, counts) for marks in (wanted, predicted, wanted & predicted))
    return {"macro_f1": 100 * _mean_where(2 * right / np.maximum(support + guessed, 1), support > 0)}


def _of_ranks(targets: Targets, scores: np.ndarray, counts: np.ndarray) -> _Measured:
    single = targets.task == "single"
    shape = (len(targets.classes), counts.shape[1])
    precision, area = np.full(shape, np.nan), np.full(shape, np.nan)
    floats = counts.astype(np.float32)  # sums of counts stay exact up to 2**24 rows
    top, whole = _normalisers(scores) if single and shape[1] else (None, None)
    for k in range(len(targets.classes) if shape[1] else 0):
        positive = targets.values == k if single else targets.values[:, k]
        if positive.any():
            values = scores[:, k] if top is None else np.exp(scores[:, k] - top) / whole
            precision[k], area[k] = _ranked_class(values, positive, floats)
    measured = {"auroc": _mean_where(area, ~np.isnan(area))}
    return measured if single else {"map": 100 * _mean_where(precision, ~np.isnan(precision)), **measured}


def _normalisers(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64 ``(n,)`` each: ``exp(scores - first) / second`` is their softmax."""
    top = scores.max(1).astype(np.float64)
    return top, np.concatenate([np.exp(scores[piece] - top[piece, None]).sum(1) for piece in pieces(scores)])


def _of_numbers(y: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> _Measured:
    centred, error = y - y.mean(), scores.astype(np.float64) - y
    columns = np.stack([centred, centred**2, error**2, np.abs(error)], axis=1)
    mean, square, squared_error, absolute = _weighted(columns, counts) / _total(counts)
    variance = square - mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where((variance > 1e-12 * square) & (y.min() < y.max()), 1 - squared_error / variance, np.nan)
    return {"r2": r2, "rmse": np.sqrt(squared_error), "mae": absolute}


def _ranked_class(values: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision (a step for each distinct score, as scikit-learn's) and AUROC of one class, ``(R,)`` each.

    Only the counts at and between the positives' scores are needed: rows of ``counts`` (float32) are added up between these,
    as a product with a sparse matrix of ones.
    """
    order = np.argsort(-values)  # of equals any: they are on one level
    ranked, wanted = values[order], np.flatnonzero(positive[order])
    levels, level_of = np.unique(-ranked[wanted], return_inverse=True)
    starts, stops = np.searchsorted(-ranked, levels, "left"), np.searchsorted(-ranked, levels, "right")
    edges = np.unique(np.concatenate([[0], starts, stops]))
    edges = edges[edges < len(values)]
    between = _summing(order, edges, len(values))
    at_level = _summing(order[wanted], np.searchsorted(level_of, np.arange(len(levels))), len(values))
    ends = np.searchsorted(edges, starts), np.searchsorted(edges, stops)
    step = max(1, _PIECE_VALUES // len(edges))
    found = [
        _at_levels(between @ piece, at_level @ piece, *ends)
        for piece in np.split(counts, range(step, counts.shape[1], step), axis=1)
    ]
    precision, area = (np.concatenate(column) for column in zip(*found, strict=True))
    return precision, area


def _summing(order: np.ndarray, starts: np.ndarray, rows: int) -> csr_array:
    """``(len(starts), rows)`` of ones: times counts it gives their sums over runs of ``order``."""
    ends = np.append(starts, len(order))
    return csr_array((np.ones(len(order), np.float32), order, ends), shape=(len(starts), rows))


def _at_levels(sums: np.ndarray, hits: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same from the counts between edges, those of the positives at each level, and the edges of the levels."""
    above = np.concatenate([np.zeros((1, sums.shape[1])), np.cumsum(sums, axis=0, dtype=np.float64)])
    before, through = above[starts], above[stops]
    hits = hits.astype(np.float64)
    found = np.cumsum(hits, axis=0)
    positives, rows = found[-1], above[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = (hits * (found / np.maximum(through, 1))).sum(0) / positives
        misses = (before - (found - hits)) + (through - found)  # twice the negatives above, ties half
        area = 1 - (hits * misses).sum(0) / (2.0 * positives * (rows - positives))
    return precision, area


def _places(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How many classes come before the right one, ``(n,)``."""
    own = np.take_along_axis(scores, y[:, None], 1)
    earlier = np.arange(scores.shape[1]) < y[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


def _total(counts: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Sum of the counts of all rows, or of some, ``(R,)`` float64."""
    return (counts if rows is None else counts[rows]).sum(0, dtype=np.int64).astype(np.float64)


def _by_class(y: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Sum of the counts over the rows of each class, ``(K, R)``."""
    sums = np.zeros((classes, counts.shape[1]), np.int64)
    if len(y):
        order = np.argsort(y, kind="stable")
        present, starts = np.unique(y[order], return_index=True)
        sums[present] = _summing(order, starts, len(y)) @ counts
    return sums


def _weighted(columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``columns.T @ counts``, ``(K, R)`` float64, in pieces of rows."""
    sums = np.zeros((columns.shape[1], counts.shape[1]))
    step = max(1, _PIECE_VALUES // (counts.shape[1] + columns.shape[1]))
    for start in range(0, len(columns), step):
        piece = slice(start, start + step)
        sums += columns[piece].T.astype(np.float64) @ counts[piece].astype(np.float64)
    return sums


def _mean_where(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is defined; NaN where nothing is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(defined, values, 0).sum(0) / defined.sum(0)
