"""Metrics of predictions, their bootstrap intervals, and comparisons of two sets of predictions.

Metrics are computed for all resamples at once: from counts of hits, and from ranks by sparse products. For 10,000 rows and 200
classes the intervals take 0.6 s of one core. scipy.stats.bootstrap with scikit-learn's metrics would sort and count again for
each resample: 0.1 s without AUROC and 0.7 s for AUROC, 240 s in all. (``test_intervals_of_many_rows_take_seconds`` in
``tests/probing/test_metrics.py`` measures the same data.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binomtest

from densefeat.errors import UsageError
from densefeat.labels import Targets, Task
from densefeat.probing.matrices import row_pieces

MAIN: dict[Task, str] = {"single": "top1", "multi": "map", "regression": "r2"}
_PIECE_VALUES = 2**23  # counts converted to float at a time
_PIECE_COUNTS = 2**25  # counts drawn at a time
_RANKED_RESAMPLES = 200  # for the metrics from ranks
_MAX_RANKED = 2**25  # scores, which take about ten seconds
_PERCENTILES = (2.5, 97.5)

_MetricValues = dict[str, np.ndarray]


def compute_metrics(targets: Targets, scores: np.ndarray) -> dict[str, float | None]:
    """Compute the metrics of predictions, by name; None where undefined.

    A class without positive rows is left out of all means over classes, and one without negative rows out of AUROC.

    single: ``top1``, ``top5`` (of more than five classes), ``balanced_accuracy`` (mean recall) and ``macro_f1`` in per cent;
    ``auroc``, one class against the rest by softmax of the scores, 0 to 1. Of equal scores the earlier class comes first.
    multi: ``map`` (mean average precision) and ``macro_f1`` (predicted: score above 0) in per cent; ``auroc``, 0 to 1.
    regression: ``r2``, and ``rmse`` and ``mae`` in units of the targets.

    Args:
        scores: single and multi ``(n, K)``, higher is more likely; regression ``(n,)``.

    Raises:
        UsageError: Scores of another shape, no rows, or NaN or infinite scores.
    """
    once = np.ones((len(targets), 1), np.uint8)
    measured = _resample_metrics(targets, scores, once)
    return {name: None if np.isnan(values[0]) else float(values[0]) for name, values in measured.items()}


def _resample_metrics(targets: Targets, scores: np.ndarray, counts: np.ndarray, ranked: int | None = None) -> _MetricValues:
    """Compute every metric for R resamples, float64 ``(R,)``, NaN where undefined.

    Row i counts ``counts[i, r]`` times in resample r (``(n, R)`` uint8). ``ranked``: compute the metrics from ranks (AUROC and
    mAP) for the first so many resamples alone; None: for all.
    """
    _check_scores(targets, scores)
    if targets.task == "regression":
        return _regression_metrics(targets.values, scores, counts)
    counted = (
        _class_metrics(targets, scores, counts) if targets.task == "single" else _multi_label_metrics(targets, scores, counts)
    )
    return counted | _rank_metrics(targets, scores, counts[:, :ranked])


def main_metric(targets: Targets, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compute the metric of :data:`MAIN` as :func:`_resample_metrics` does, without the work for the others."""
    if targets.task == "single":
        _check_scores(targets, scores)
        return 100 * _sum_counts(counts, scores.argmax(1) == targets.values) / _sum_counts(counts)
    if targets.task == "multi":
        _check_scores(targets, scores)
        return _rank_metrics(targets, scores, counts)["map"]
    return _resample_metrics(targets, scores, counts)["r2"]


def _check_scores(targets: Targets, scores: np.ndarray) -> None:
    shape = (len(targets),) if targets.task == "regression" else (len(targets), len(targets.classes))
    if scores.shape != shape:
        raise UsageError(f"scores of shape {scores.shape}: for these {targets.task} targets it must be {shape}")
    if not len(targets):
        raise UsageError("no rows to measure predictions on: give at least 1")
    if not np.isfinite(scores).all():
        raise UsageError(f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} scores are NaN or infinite")


def _class_metrics(targets: Targets, scores: np.ndarray, counts: np.ndarray) -> _MetricValues:
    y, classes = targets.values, len(targets.classes)
    predicted, rows = scores.argmax(1), _sum_counts(counts)
    hit = predicted == y
    measured = {"top1": 100 * _sum_counts(counts, hit) / rows}
    if classes > 5:
        earlier = np.concatenate([_rank_labels(scores[piece], y[piece]) for piece in row_pieces(scores)])
        measured["top5"] = 100 * _sum_counts(counts, earlier < 5) / rows
    support, guessed = _sum_by_class(y, counts, classes), _sum_by_class(predicted, counts, classes)
    right = _sum_by_class(y[hit], counts[hit], classes)
    present = support > 0
    measured["balanced_accuracy"] = 100 * _mean_defined(right / np.maximum(support, 1), present)
    measured["macro_f1"] = 100 * _mean_defined(2 * right / np.maximum(support + guessed, 1), present)
    return measured


def _multi_label_metrics(targets: Targets, scores: np.ndarray, counts: np.ndarray) -> _MetricValues:
    predicted, wanted = scores > 0, targets.values
    support, guessed, right = (_weighted_sums(marks, counts) for marks in (wanted, predicted, wanted & predicted))
    return {"macro_f1": 100 * _mean_defined(2 * right / np.maximum(support + guessed, 1), support > 0)}


def _rank_metrics(targets: Targets, scores: np.ndarray, counts: np.ndarray) -> _MetricValues:
    single = targets.task == "single"
    shape = (len(targets.classes), counts.shape[1])
    precision, area = np.full(shape, np.nan), np.full(shape, np.nan)
    floats = counts.astype(np.float32)  # sums of counts stay exact up to 2**24 rows
    top, total = _softmax_terms(scores) if single and shape[1] else (None, None)
    for k in range(len(targets.classes) if shape[1] else 0):
        positive = targets.values == k if single else targets.values[:, k]
        if positive.any():
            values = scores[:, k] if top is None else np.exp(scores[:, k] - top) / total
            precision[k], area[k] = _rank_one_class(values, positive, floats)
    measured = {"auroc": _mean_defined(area, ~np.isnan(area))}
    return measured if single else {"map": 100 * _mean_defined(precision, ~np.isnan(precision)), **measured}


def _softmax_terms(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute two float64 ``(n,)`` with which ``exp(scores - first) / second`` is the softmax of the scores."""
    top = scores.max(1).astype(np.float64)
    return top, np.concatenate([np.exp(scores[piece] - top[piece, None]).sum(1) for piece in row_pieces(scores)])


def _regression_metrics(y: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> _MetricValues:
    centred, error = y - y.mean(), scores.astype(np.float64) - y
    columns = np.stack([centred, centred**2, error**2, np.abs(error)], axis=1)
    mean, square, squared_error, absolute = _weighted_sums(columns, counts) / _sum_counts(counts)
    variance = square - mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where((variance > 1e-12 * square) & (y.min() < y.max()), 1 - squared_error / variance, np.nan)
    return {"r2": r2, "rmse": np.sqrt(squared_error), "mae": absolute}


def _rank_one_class(values: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute average precision (a step for each distinct score, as scikit-learn's) and AUROC of one class, ``(R,)`` each.

    Only the counts at and between the scores of positive rows are needed: rows of ``counts`` (float32) are summed between
    these by a product with a sparse matrix of ones.
    """
    order = np.argsort(-values)  # equal scores may have any order: they are one level
    ranked, wanted = values[order], np.flatnonzero(positive[order])
    levels, level_of = np.unique(-ranked[wanted], return_inverse=True)
    starts, stops = np.searchsorted(-ranked, levels, "left"), np.searchsorted(-ranked, levels, "right")
    edges = np.unique(np.concatenate([[0], starts, stops]))
    edges = edges[edges < len(values)]
    between = _run_sums(order, edges, len(values))
    at_level = _run_sums(order[wanted], np.searchsorted(level_of, np.arange(len(levels))), len(values))
    ends = np.searchsorted(edges, starts), np.searchsorted(edges, stops)
    step = max(1, _PIECE_VALUES // len(edges))
    measured = [
        _precision_and_area(between @ piece, at_level @ piece, *ends)
        for piece in np.split(counts, range(step, counts.shape[1], step), axis=1)
    ]
    precision, area = (np.concatenate(column) for column in zip(*measured, strict=True))
    return precision, area


def _run_sums(order: np.ndarray, starts: np.ndarray, rows: int) -> csr_array:
    """Make a matrix ``(len(starts), rows)`` that sums rows over runs of ``order``."""
    ends = np.append(starts, len(order))
    return csr_array((np.ones(len(order), np.float32), order, ends), shape=(len(starts), rows))


def _precision_and_area(
    sums: np.ndarray, hits: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute average precision and AUROC from sums of counts between edges.

    ``hits``: counts of the positives at each level of their scores; ``starts``, ``stops``: the edges of the levels.
    """
    above = np.concatenate([np.zeros((1, sums.shape[1])), np.cumsum(sums, axis=0, dtype=np.float64)])
    before, through = above[starts], above[stops]
    hits = hits.astype(np.float64)
    hits_through = np.cumsum(hits, axis=0)
    positives, rows = hits_through[-1], above[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = (hits * (hits_through / np.maximum(through, 1))).sum(0) / positives
        # twice the number of negatives above, where ties count half
        misses = (before - (hits_through - hits)) + (through - hits_through)
        area = 1 - (hits * misses).sum(0) / (2.0 * positives * (rows - positives))
    return precision, area


def _rank_labels(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Count the classes that come before the right one, ``(n,)``."""
    own = np.take_along_axis(scores, y[:, None], 1)
    earlier = np.arange(scores.shape[1]) < y[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


def _sum_counts(counts: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Sum the counts of all rows, or of some, ``(R,)`` float64."""
    return (counts if rows is None else counts[rows]).sum(0, dtype=np.int64).astype(np.float64)


def _sum_by_class(y: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Sum the counts over the rows of each class, ``(K, R)``."""
    sums = np.zeros((classes, counts.shape[1]), np.int64)
    if len(y):
        order = np.argsort(y, kind="stable")
        present, starts = np.unique(y[order], return_index=True)
        sums[present] = _run_sums(order, starts, len(y)) @ counts
    return sums


def _weighted_sums(columns: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compute ``columns.T @ counts``, ``(K, R)`` float64, in pieces of rows."""
    sums = np.zeros((columns.shape[1], counts.shape[1]))
    step = max(1, _PIECE_VALUES // (counts.shape[1] + columns.shape[1]))
    for start in range(0, len(columns), step):
        piece = slice(start, start + step)
        sums += columns[piece].T.astype(np.float64) @ counts[piece].astype(np.float64)
    return sums


def _mean_defined(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Average the defined values over the first axis; NaN where none is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(defined, values, 0).sum(0) / defined.sum(0)


@dataclass(frozen=True)
class PairedComparison:
    """The difference, first less second, of the main metric. ``interval``: 95 %; ``p_value``: two-sided."""

    metric: str
    test: str
    difference: float
    interval: tuple[float, float]
    p_value: float


def bootstrap(
    targets: Targets, scores: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """Compute a 95 % percentile interval of every metric of :func:`compute_metrics`, over rows drawn with replacement.

    AUROC and mAP are computed for the first 200 resamples, and not at all (None) for more than 2^25 scores. Resamples in which
    a metric is undefined are left out; None: undefined in all. Memory is bounded: resamples are drawn in pieces.
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.)
    Raises UsageError as :func:`compute_metrics`, and for fewer than 2 resamples.
    """
    left = _RANKED_RESAMPLES if scores.size <= _MAX_RANKED else 0
    measured: dict[str, list[np.ndarray]] = {}
    for counts in _draw_pieces(len(targets), resamples, seed):
        for name, values in _resample_metrics(targets, scores, counts, ranked=left).items():
            measured.setdefault(name, []).append(values)
        left = max(0, left - counts.shape[1])
    return {name: find_interval(np.concatenate(values)) for name, values in measured.items()}


def compare_predictions(targets: Targets, first: np.ndarray, second: np.ndarray, seed: int = 0) -> PairedComparison:
    """Test whether one set of predictions for the same rows is better than another by the main metric.

    Single-label: McNemar's test, exact (binomial over the rows that one set alone gets right). Else a paired bootstrap of 1000
    resamples; its p-value is twice the smaller share of resamples at or beyond no difference. The interval is always that of
    the bootstrap.
    """
    once = np.ones((len(targets), 1), np.uint8)
    difference = (main_metric(targets, first, once) - main_metric(targets, second, once))[0]
    pieces = _draw_pieces(len(targets), 1000, seed)
    spread = np.concatenate([main_metric(targets, first, counts) - main_metric(targets, second, counts) for counts in pieces])
    ends = find_interval(spread)
    if ends is None or np.isnan(difference):
        raise UsageError(f"{MAIN[targets.task]} is undefined on these {len(targets)} rows: nothing can be compared")
    if targets.task == "single":
        return PairedComparison("top1", "mcnemar", float(difference), ends, _mcnemar_test(targets.values, first, second))
    spread = spread[~np.isnan(spread)]
    beyond = min(np.count_nonzero(spread <= 0), np.count_nonzero(spread >= 0))
    p_value = min(1.0, 2 * (int(beyond) + 1) / (len(spread) + 1))
    return PairedComparison(MAIN[targets.task], "paired bootstrap", float(difference), ends, p_value)


def _mcnemar_test(y: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    one, other = first.argmax(1) == y, second.argmax(1) == y
    better, worse = int(np.count_nonzero(one & ~other)), int(np.count_nonzero(other & ~one))
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _draw_pieces(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw resamples in pieces; where one piece holds them all, it is kept for the next call with the same arguments."""
    step = max(1, _PIECE_COUNTS // max(1, rows))
    if step >= resamples:
        yield draw_resamples(rows, resamples, seed)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, step):
        yield _draw_counts(generator, rows, min(step, resamples - start))


@lru_cache(maxsize=1)
def draw_resamples(rows: int, resamples: int, seed: int) -> np.ndarray:
    """Count how often each resample has each row: ``(rows, resamples)`` uint8 (256 times does not happen)."""
    if resamples < 2:
        raise UsageError(f"{resamples} resamples: give at least 2")
    counts = _draw_counts(np.random.default_rng(seed), rows, resamples)
    counts.flags.writeable = False
    return counts


def _draw_counts(generator: np.random.Generator, rows: int, resamples: int) -> np.ndarray:
    counts = np.zeros((rows, resamples), np.uint8)
    for r in range(resamples if rows else 0):
        counts[:, r] = np.bincount(generator.integers(0, rows, rows), minlength=rows)
    return counts


def find_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Return the percentiles 2.5 and 97.5 of the values, ``(resamples,)``, that are no NaN; None if there are none."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, _PERCENTILES)
    return float(low), float(high)
