"""Search by faiss, in memory: much less work for all pairs or hundreds of queries, at the risk of missing some.

The index is an inverted file: the vectors (float32, all in memory) are sorted into 4·√rows cells, and a query looks into the
16 nearest. Results are scored as in exact search. The index is built anew for each search: for a few queries, exact search is
faster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.search.exact import (
    MAX_PAIRS,
    TILE_VALUES,
    Advance,
    RowPairs,
    check_threshold,
    merge_nearest,
    prepare_queries,
    rank_pairs,
)
from densefeat.search.vectors import ROUNDING, compute_closeness, read_chunks, to_scores
from densefeat.store import Store

_PROBES = 16  # cells that a query looks into
_TRAINING_ROWS = 40  # for each cell
_BATCH = 1024  # queries at a time
_MAX_HITS = 2**24  # of a batch of queries


@dataclass(frozen=True)
class Index:
    """A faiss index over the usable rows of a store. ``rows``: their numbers in the store; a position is a place in it."""

    index: Any
    rows: np.ndarray
    metric: str

    def read_vectors(self, positions: np.ndarray) -> np.ndarray:
        """Return the prepared vectors, float32 ``(n, C)``, at positions of the index."""
        return self.index.reconstruct_batch(positions)


def _build_index(store: Store, column: str, metric: str, progress: Advance | None = None) -> Index:
    """Build an index, reading the column twice: evenly spaced rows to find the cells, then all rows to fill them.

    Raises UsageError without faiss, or for the dot product, which has no cells: a long vector is near to everything.
    """
    if metric == "dot":
        raise UsageError("metric 'dot' with engine faiss: choose cosine or euclidean, or engine exact")
    try:
        import faiss  # optional
    except ImportError as error:
        raise UsageError("engine 'faiss' needs a package that is not installed: pip install 'densefeat[faiss]'") from error
    size = int(np.prod(store.shapes[column]))
    cells = max(1, min(round(4 * len(store) ** 0.5), len(store) // _TRAINING_ROWS))
    if metric == "cosine":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, cells, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(size), size, cells, faiss.METRIC_L2)
    index.nprobe = min(_PROBES, cells)
    every = max(1, len(store) // (cells * _TRAINING_ROWS))
    sample = [chunk[-start % every :: every] for start, chunk in read_chunks(store, column, metric)]
    training = np.concatenate([part.rows[part.usable] for part in sample])
    if len(training) < cells:
        raise UsageError(f"{column} of {store.path}: too few rows that can be compared, use engine exact")
    index.train(training)
    rows = []
    for start, chunk in read_chunks(store, column, metric):
        index.add(chunk.rows[chunk.usable])
        rows.append(start + np.flatnonzero(chunk.usable))
        if progress is not None:
            progress(len(chunk))
    index.make_direct_map()
    return Index(index, np.concatenate(rows), metric)


def find_nearest(
    store: Store,
    queries: np.ndarray,
    column: str,
    k: int = 10,
    metric: str = "cosine",
    leave_out: Sequence[int] | None = None,
    progress: Advance | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Do as :func:`densefeat.search.exact.find_nearest`, approximately. ``progress``: called with the rows that are indexed."""
    targets = prepare_queries(store, queries, column, k, metric)
    k = min(k, len(store))
    index = _build_index(store, column, metric, progress)
    rows = np.full((len(targets), k), -1, np.int64)
    closeness = np.full((len(targets), k), -np.inf, np.float32)
    for i in range(0, len(targets), _BATCH):
        for query, hits in enumerate(index.index.search(targets.rows[i : i + _BATCH], k + 1)[1], i):
            positions = np.sort(hits[hits >= 0])
            if leave_out is not None:
                positions = positions[index.rows[positions] != leave_out[query]]
            exact = compute_closeness(index.read_vectors(positions), targets.rows[query : query + 1], metric)
            merge_nearest(rows[query], closeness[query], index.rows[positions], exact)
    return rows, np.where(rows < 0, np.float32("nan"), to_scores(closeness, metric))


def find_pairs(
    store: Store,
    column: str,
    threshold: float,
    metric: str = "cosine",
    max_pairs: int = MAX_PAIRS,
    progress: Advance | None = None,
) -> RowPairs:
    """Do as :func:`densefeat.search.exact.find_pairs`, approximately.

    ``progress``: called with the rows that are indexed, then with the rows that are compared.
    """
    check_threshold(threshold, metric, max_pairs)
    index = _build_index(store, column, metric, progress)
    least = np.float32(-threshold if metric == "euclidean" else threshold)
    pieces: list[tuple[np.ndarray, ...]] = []
    count = 0
    for start, batch in _split_queries(index):
        for pairs in _find_batch_pairs(index, start, batch, least):
            pieces.append(pairs)
            count += len(pairs[0])
        if progress is not None:
            progress(batch)
        if count > 2 * max_pairs:  # each pair is found from one of its rows or from both
            break
    first, second, closeness = _remove_repeated(pieces)
    kept = (index.rows[first[:max_pairs]], index.rows[second[:max_pairs]], closeness[:max_pairs])
    return rank_pairs([kept], metric, complete=len(first) <= max_pairs)


def _split_queries(index: Index) -> Iterator[tuple[int, int]]:
    """Yield (first position, number) of the rows that are queries together: so many that their hits fit into memory."""
    lists = index.index.invlists
    sizes = np.sort([lists.list_size(cell) for cell in range(index.index.nlist)])
    batch = int(np.clip(_MAX_HITS // sizes[-index.index.nprobe :].sum(), 1, _BATCH))
    for start in range(0, len(index.rows), batch):
        yield start, min(batch, len(index.rows) - start)


def _find_batch_pairs(
    index: Index, start: int, batch: int, least: np.float32
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (first, second, closeness), by position in the index, of the pairs that are near enough."""
    queries = index.read_vectors(np.arange(start, start + batch))
    error = (queries.shape[1] + 8) * ROUNDING
    radius = (
        least - error if index.metric == "cosine" else np.nextafter(np.float32(least**2 * (1 + 2 * error)), np.float32("inf"))
    )
    ends, _, positions = index.index.range_search(queries, float(radius))
    own = np.repeat(np.arange(start, start + batch), np.diff(ends.astype(np.int64)))
    first, second = np.minimum(own, positions)[own != positions], np.maximum(own, positions)[own != positions]
    step = max(1, TILE_VALUES // queries.shape[1])
    for n in range(0, len(first), step):
        some = first[n : n + step], second[n : n + step]
        closeness = compute_closeness(index.read_vectors(some[0]), index.read_vectors(some[1]), index.metric)
        near = closeness >= least
        yield some[0][near], some[1][near], closeness[near]


def _remove_repeated(pieces: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Return the pairs in the order of their rows, each once."""
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, closeness = (np.concatenate(values) for values in zip(empty, *pieces, strict=True))
    order = np.lexsort((second, first))
    first, second, closeness = first[order], second[order], closeness[order]
    new = np.ones(len(first), bool)
    new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return first[new], second[new], closeness[new]
