"""Exact search, a block of the store at a time: memory is bounded by the blocks and by what is found.

Pairs are chosen by float32 products, with a margin for their rounding, and rated in float64: what is found, and in which order,
depends on neither blocks nor threads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError
from densefeat.search.blocks import prepared_blocks
from densefeat.search.metrics import Vectors, approximate, check_metric, exact, on_scale, prepare, scores
from densefeat.store import Store

TILE_VALUES = 2**22  # products held at a time
MAX_PAIRS = 1_000_000

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Duplicates:
    """Pairs of rows, nearest first: ``first`` < ``second`` and ``scores``, ``(n,)`` each. ``complete``: there are no more."""

    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray
    complete: bool


def nearest(
    store: Store,
    queries: np.ndarray,
    column: str,
    k: int = 10,
    metric: str = "cosine",
    leave_out: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a store that are nearest to each query; of equally near ones the earlier.

    Args:
        queries: ``(Q, …)``, as many values each as the column's vectors.
        k: At most so many; all rows where the store has fewer.
        metric: ``"cosine"``, ``"euclidean"`` or ``"dot"``.
        leave_out: A row for each query that is not to be found, -1 for none.
        progress: Called with the number of rows done since the last call.

    Returns:
        Row numbers int64 and scores float32 ``(Q, min(k, rows))``. Rows of NaN or infinities, and for cosine of zeros, are
        never found; where fewer than k are left, row -1 with a score of NaN.

    Raises:
        UsageError: A query of another length, or one that no row is near to; k below 1; an unknown metric.
    """
    targets = check_queries(store, queries, column, k, metric)
    k = min(k, len(store))
    rows = np.full((len(targets), k), -1, np.int64)
    closeness = np.full((len(targets), k), -np.inf, np.float32)
    for start, block in prepared_blocks(store, column, metric):
        step = max(1, TILE_VALUES // len(block))
        for i in range(0, len(targets), step):
            values, error = approximate(targets[i : i + step], block, metric)
            for query, row in enumerate(values, i):
                if leave_out is not None and start <= leave_out[query] < start + len(block):
                    row[leave_out[query] - start] = -np.inf
                found = _candidates(row, on_scale(float(closeness[query, -1]), metric), error, k)
                near = exact(block.rows[found], targets.rows[query : query + 1], metric)
                merge(rows[query], closeness[query], found + start, near)
        if progress is not None:
            progress(len(block))
    return rows, np.where(rows < 0, np.float32("nan"), scores(closeness, metric))


def check_queries(store: Store, queries: np.ndarray, column: str, k: int, metric: str) -> Vectors:
    check_metric(metric)
    if k < 1:
        raise UsageError(f"k {k}: at least 1")
    size = int(np.prod(store.shapes[column]))
    values = np.array(queries, np.float32).reshape(len(queries), -1)
    if values.shape[1] != size:
        raise UsageError(f"queries of {values.shape[1]} values: {column} of {store.path} has {size}")
    targets = prepare(values, metric)
    if not targets.usable.all():
        which = int(np.argmin(targets.usable))
        raise UsageError(f"query {which}: nothing is near to a vector of zeros, NaN or infinities ({metric})")
    return targets


def _candidates(values: np.ndarray, least: float, error: float, k: int) -> np.ndarray:
    """Places ``(n,)`` of all that may be among the k nearest, given closeness with an error, and the least that counts."""
    found = np.flatnonzero(values >= least - error) if least > -np.inf else np.flatnonzero(values > -np.inf)
    if len(found) > k:
        near = values[found]
        found = found[near >= np.partition(near, -k)[-k] - 2 * error]
    return found


def merge(rows: np.ndarray, closeness: np.ndarray, new_rows: np.ndarray, new_closeness: np.ndarray) -> None:
    """Put later rows into the k nearest so far, in place; the sort is stable, so that of equals the earlier stay first."""
    both = np.concatenate([closeness, new_closeness])
    order = np.argsort(-both, kind="stable")[: len(rows)]
    rows[:], closeness[:] = np.concatenate([rows, new_rows])[order], both[order]


def near_duplicates(
    store: Store,
    column: str,
    threshold: float,
    metric: str = "cosine",
    max_pairs: int = MAX_PAIRS,
    progress: Progress | None = None,
) -> Duplicates:
    """All pairs of rows whose similarity is at least ``threshold``, or whose distance is at most that; float32 both.

    Stops when it has found more than ``max_pairs``. Rows of NaN or infinities, and for cosine of zeros, are in no pair.
    ``progress``: called with the number of rows compared with all later ones since the last call.
    Raises UsageError for an unknown metric, a threshold that is no number, or below 0 for distances, or ``max_pairs`` below 1.
    """
    check_threshold(threshold, metric, max_pairs)
    found: list[tuple[np.ndarray, ...]] = []
    left = max_pairs
    for pairs in _pairs_within(store, column, threshold, metric, progress):
        found.append(tuple(values[:left] for values in pairs))
        left -= len(pairs[0])
        if left < 0:
            break
    return ranked(found, metric, complete=left >= 0)


def check_threshold(threshold: float, metric: str, max_pairs: int) -> None:
    check_metric(metric)
    if not np.isfinite(threshold) or (metric == "euclidean" and threshold < 0):
        raise UsageError(f"threshold {threshold}: give a number" + (" of at least 0" if metric == "euclidean" else ""))
    if max_pairs < 1:
        raise UsageError(f"at most {max_pairs} pairs: at least 1")


def ranked(found: list[tuple[np.ndarray, ...]], metric: str, complete: bool) -> Duplicates:
    """``found``: pieces of (first, second, closeness)."""
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, closeness = (np.concatenate(values) for values in zip(empty, *found, strict=True))
    order = np.lexsort((second, first, -closeness))
    return Duplicates(first[order], second[order], scores(closeness[order], metric), complete)


def _pairs_within(
    store: Store, column: str, threshold: float, metric: str, progress: Progress | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(first, second, closeness) of the pairs near enough, a tile of products at a time."""
    least = np.float32(-threshold if metric == "euclidean" else threshold)
    for start, block in prepared_blocks(store, column, metric):
        yield from _pairs_of_blocks(start, block, start, block, least, metric)
        for other_start, other in prepared_blocks(store, column, metric, start + len(block)):
            yield from _pairs_of_blocks(start, block, other_start, other, least, metric)
        if progress is not None:
            progress(len(block))


def _pairs_of_blocks(
    a_start: int, a: Vectors, b_start: int, b: Vectors, least: np.float32, metric: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    side = int(TILE_VALUES**0.5)
    for i in range(0, len(a), side):
        for j in range(i if a_start == b_start else 0, len(b), side):
            values, error = approximate(a[i : i + side], b[j : j + side], metric)
            first, second = np.nonzero(values >= on_scale(float(least), metric) - error)
            first, second = first + i, second + j
            if a_start == b_start:
                first, second = first[second > first], second[second > first]
            step = max(1, TILE_VALUES // a.rows.shape[1])
            for n in range(0, len(first), step):
                some = first[n : n + step], second[n : n + step]
                closeness = exact(a.rows[some[0]], b.rows[some[1]], metric)
                near = closeness >= least
                yield some[0][near] + a_start, some[1][near] + b_start, closeness[near]
