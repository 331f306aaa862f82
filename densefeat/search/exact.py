"""Exact search, a chunk of the store at a time: memory is bounded by the chunks and the results.

Pairs are preselected by float32 products, with a margin for rounding, and scored in float64: results and their order depend
neither on chunks nor on threads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError
from densefeat.search.vectors import (
    Vectors,
    check_metric,
    compute_closeness,
    estimate_closeness,
    prepare_vectors,
    read_chunks,
    to_product,
    to_scores,
)
from densefeat.store import Store

TILE_VALUES = 2**22  # products held at a time
MAX_PAIRS = 1_000_000

Advance = Callable[[int], None]


@dataclass(frozen=True)
class RowPairs:
    """The pairs of rows, nearest first: ``first`` < ``second`` and ``scores``, ``(n,)`` each.

    ``complete``: there are no more.
    """

    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray
    complete: bool


def find_nearest(
    store: Store,
    queries: np.ndarray,
    column: str,
    k: int = 10,
    metric: str = "cosine",
    leave_out: Sequence[int] | None = None,
    progress: Advance | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a store that are nearest to each query; of equally near ones the earlier.

    Args:
        queries: ``(Q, …)``, each with as many values as the column's vectors.
        k: How many for each query, if the store has as many.
        metric: ``"cosine"``, ``"euclidean"`` or ``"dot"``.
        leave_out: For each query a row that must not be a result, or -1.
        progress: Called with the number of rows done since the last call.

    Returns:
        Row numbers int64 and scores float32 ``(Q, min(k, rows))``. Rows of NaN or infinities, and for cosine of zeros, are
        never results; where fewer than k are left, the row is -1 and the score NaN.

    Raises:
        UsageError: A query of another length, of zeros, NaN or infinities; k below 1; an unknown metric.
    """
    targets = prepare_queries(store, queries, column, k, metric)
    k = min(k, len(store))
    rows = np.full((len(targets), k), -1, np.int64)
    closeness = np.full((len(targets), k), -np.inf, np.float32)
    for start, chunk in read_chunks(store, column, metric):
        step = max(1, TILE_VALUES // len(chunk))
        for i in range(0, len(targets), step):
            values, error = estimate_closeness(targets[i : i + step], chunk, metric)
            for query, row in enumerate(values, i):
                if leave_out is not None and start <= leave_out[query] < start + len(chunk):
                    row[leave_out[query] - start] = -np.inf
                candidates = _find_candidates(row, to_product(float(closeness[query, -1]), metric), error, k)
                exact = compute_closeness(chunk.rows[candidates], targets.rows[query : query + 1], metric)
                merge_nearest(rows[query], closeness[query], candidates + start, exact)
        if progress is not None:
            progress(len(chunk))
    return rows, np.where(rows < 0, np.float32("nan"), to_scores(closeness, metric))


def prepare_queries(store: Store, queries: np.ndarray, column: str, k: int, metric: str) -> Vectors:
    """Check a search and return its queries as vectors. Raises UsageError as :func:`find_nearest`."""
    check_metric(metric)
    if k < 1:
        raise UsageError(f"k {k}: give at least 1")
    size = int(np.prod(store.shapes[column]))
    values = np.array(queries, np.float32).reshape(len(queries), -1)
    if values.shape[1] != size:
        raise UsageError(f"queries have {values.shape[1]} values, the vectors {column} of {store.path} {size}")
    targets = prepare_vectors(values, metric)
    if not targets.usable.all():
        number = int(np.argmin(targets.usable))
        raise UsageError(f"query {number}: nothing is near to a vector of zeros, NaN or infinities ({metric})")
    return targets


def _find_candidates(values: np.ndarray, least: float, error: float, k: int) -> np.ndarray:
    """Return the positions of all values that may be among the k nearest.

    ``values``: products, off by at most ``error``; ``least``: what a value must reach.
    """
    positions = np.flatnonzero(values >= least - error) if least > -np.inf else np.flatnonzero(values > -np.inf)
    if len(positions) > k:
        near = values[positions]
        positions = positions[near >= np.partition(near, -k)[-k] - 2 * error]
    return positions


def merge_nearest(rows: np.ndarray, closeness: np.ndarray, new_rows: np.ndarray, new_closeness: np.ndarray) -> None:
    """Merge later rows into the k nearest so far, in place; the sort is stable, so that of equals the earlier stay first."""
    both = np.concatenate([closeness, new_closeness])
    order = np.argsort(-both, kind="stable")[: len(rows)]
    rows[:], closeness[:] = np.concatenate([rows, new_rows])[order], both[order]


def find_pairs(
    store: Store,
    column: str,
    threshold: float,
    metric: str = "cosine",
    max_pairs: int = MAX_PAIRS,
    progress: Advance | None = None,
) -> RowPairs:
    """Return the pairs of rows whose similarity is at least ``threshold``, or whose distance is at most that.

    The search ends at more than ``max_pairs``. Rows of NaN or infinities, and for cosine of zeros, are in no pair.
    ``progress``: called with the number of rows compared with all later ones since the last call.
    Raises UsageError for an unknown metric, a threshold that is not a number or, for distances, negative, or ``max_pairs``
    below 1.
    """
    check_threshold(threshold, metric, max_pairs)
    pieces: list[tuple[np.ndarray, ...]] = []
    left = max_pairs
    for pairs in _compare_rows(store, column, threshold, metric, progress):
        pieces.append(tuple(values[:left] for values in pairs))
        left -= len(pairs[0])
        if left < 0:
            break
    return rank_pairs(pieces, metric, complete=left >= 0)


def check_threshold(threshold: float, metric: str, max_pairs: int) -> None:
    """Raise UsageError as :func:`find_pairs`."""
    check_metric(metric)
    if not np.isfinite(threshold) or (metric == "euclidean" and threshold < 0):
        raise UsageError(f"threshold {threshold}: give a number" + (" of at least 0" if metric == "euclidean" else ""))
    if max_pairs < 1:
        raise UsageError(f"max_pairs {max_pairs}: give at least 1")


def rank_pairs(pieces: list[tuple[np.ndarray, ...]], metric: str, complete: bool) -> RowPairs:
    """Sort pairs, nearest first. ``pieces``: of (first, second, closeness)."""
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, closeness = (np.concatenate(values) for values in zip(empty, *pieces, strict=True))
    order = np.lexsort((second, first, -closeness))
    return RowPairs(first[order], second[order], to_scores(closeness[order], metric), complete)


def _compare_rows(
    store: Store, column: str, threshold: float, metric: str, progress: Advance | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (first, second, closeness) of the pairs that are near enough, for a tile of products at a time."""
    least = np.float32(-threshold if metric == "euclidean" else threshold)
    for start, chunk in read_chunks(store, column, metric):
        yield from _compare_chunks(start, chunk, start, chunk, least, metric)
        for other_start, other in read_chunks(store, column, metric, start + len(chunk)):
            yield from _compare_chunks(start, chunk, other_start, other, least, metric)
        if progress is not None:
            progress(len(chunk))


def _compare_chunks(
    a_start: int, a: Vectors, b_start: int, b: Vectors, least: np.float32, metric: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    side = int(TILE_VALUES**0.5)
    for i in range(0, len(a), side):
        for j in range(i if a_start == b_start else 0, len(b), side):
            values, error = estimate_closeness(a[i : i + side], b[j : j + side], metric)
            first, second = np.nonzero(values >= to_product(float(least), metric) - error)
            first, second = first + i, second + j
            if a_start == b_start:
                first, second = first[second > first], second[second > first]
            step = max(1, TILE_VALUES // a.rows.shape[1])
            for n in range(0, len(first), step):
                some = first[n : n + step], second[n : n + step]
                closeness = compute_closeness(a.rows[some[0]], b.rows[some[1]], metric)
                near = closeness >= least
                yield some[0][near] + a_start, some[1][near] + b_start, closeness[near]
