"""Search by faiss, in memory: much less work for all pairs or hundreds of queries, at the risk of missing some.

An inverted file: the vectors (float32, all in memory) are sorted into 4·√rows cells, and a query looks into the 16 nearest.
What it finds is rated as in exact search. The index is made anew each time: for a few queries, exact search is faster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.search.blocks import prepared_blocks
from densefeat.search.exact import MAX_PAIRS, TILE_VALUES, Duplicates, Progress, check_queries, check_threshold, merge, ranked
from densefeat.search.metrics import ROUNDING, exact, scores
from densefeat.store import Store

_PROBES = 16  # cells that a query looks into
_TRAINING_ROWS = 40  # for each cell
_BATCH = 1024  # queries at a time
_MAX_FOUND = 2**24  # places that a batch may find


@dataclass(frozen=True)
class Index:
    """``index``: faiss's, over the usable rows; ``rows``: their numbers in the store."""

    index: Any
    rows: np.ndarray
    metric: str

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """float32 ``(n, C)``, as they were prepared."""
        return self.index.reconstruct_batch(places)


def _build_index(store: Store, column: str, metric: str, progress: Progress | None = None) -> Index:
    """Reads the column twice: for the cells, from rows evenly spaced, and to fill them.

    UsageError without faiss, or for the dot product, which has no cells: a long vector is near to everything.
    """
    if metric == "dot":
        raise UsageError("metric 'dot' with engine faiss: choose cosine or euclidean, or engine exact")
    try:
        import faiss
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
    sample = [block[-start % every :: every] for start, block in prepared_blocks(store, column, metric)]
    training = np.concatenate([part.rows[part.usable] for part in sample])
    if len(training) < cells:
        raise UsageError(f"{column} of {store.path}: too few rows that can be compared, use engine exact")
    index.train(training)
    rows = []
    for start, block in prepared_blocks(store, column, metric):
        index.add(block.rows[block.usable])
        rows.append(start + np.flatnonzero(block.usable))
        if progress is not None:
            progress(len(block))
    index.make_direct_map()
    return Index(index, np.concatenate(rows), metric)


def nearest(
    store: Store,
    queries: np.ndarray,
    column: str,
    k: int = 10,
    metric: str = "cosine",
    leave_out: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`densefeat.search.exact.nearest`, approximately; ``progress`` tells of the building of the index."""
    targets = check_queries(store, queries, column, k, metric)
    k = min(k, len(store))
    built = _build_index(store, column, metric, progress)
    rows = np.full((len(targets), k), -1, np.int64)
    closeness = np.full((len(targets), k), -np.inf, np.float32)
    for i in range(0, len(targets), _BATCH):
        for query, found in enumerate(built.index.search(targets.rows[i : i + _BATCH], k + 1)[1], i):
            places = np.sort(found[found >= 0])
            if leave_out is not None:
                places = places[built.rows[places] != leave_out[query]]
            near = exact(built.vectors(places), targets.rows[query : query + 1], metric)
            merge(rows[query], closeness[query], built.rows[places], near)
    return rows, np.where(rows < 0, np.float32("nan"), scores(closeness, metric))


def near_duplicates(
    store: Store,
    column: str,
    threshold: float,
    metric: str = "cosine",
    max_pairs: int = MAX_PAIRS,
    progress: Progress | None = None,
) -> Duplicates:
    """As :func:`densefeat.search.exact.near_duplicates`, approximately. ``progress``: rows indexed, then rows compared."""
    check_threshold(threshold, metric, max_pairs)
    built = _build_index(store, column, metric, progress)
    least = np.float32(-threshold if metric == "euclidean" else threshold)
    found: list[tuple[np.ndarray, ...]] = []
    held = 0
    for start, batch in _batches(built):
        for pairs in _pairs_of_batch(built, start, batch, least):
            found.append(pairs)
            held += len(pairs[0])
        if progress is not None:
            progress(batch)
        if held > 2 * max_pairs:  # each pair is found from one of its rows or from both
            break
    first, second, closeness = _once(found)
    kept = (built.rows[first[:max_pairs]], built.rows[second[:max_pairs]], closeness[:max_pairs])
    return ranked([kept], metric, complete=len(first) <= max_pairs)


def _batches(built: Index) -> Iterator[tuple[int, int]]:
    """(first place, number) of the rows that are queries together: so many that what they find fits into memory."""
    lists = built.index.invlists
    sizes = np.sort([lists.list_size(cell) for cell in range(built.index.nlist)])
    batch = int(np.clip(_MAX_FOUND // sizes[-built.index.nprobe :].sum(), 1, _BATCH))
    for start in range(0, len(built.rows), batch):
        yield start, min(batch, len(built.rows) - start)


def _pairs_of_batch(
    built: Index, start: int, batch: int, least: np.float32
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(first, second, closeness) by place in the index, of the pairs that are near enough."""
    queries = built.vectors(np.arange(start, start + batch))
    error = (queries.shape[1] + 8) * ROUNDING
    radius = (
        least - error if built.metric == "cosine" else np.nextafter(np.float32(least**2 * (1 + 2 * error)), np.float32("inf"))
    )
    ends, _, places = built.index.range_search(queries, float(radius))
    own = np.repeat(np.arange(start, start + batch), np.diff(ends.astype(np.int64)))
    first, second = np.minimum(own, places)[own != places], np.maximum(own, places)[own != places]
    step = max(1, TILE_VALUES // queries.shape[1])
    for n in range(0, len(first), step):
        some = first[n : n + step], second[n : n + step]
        closeness = exact(built.vectors(some[0]), built.vectors(some[1]), built.metric)
        near = closeness >= least
        yield some[0][near], some[1][near], closeness[near]


def _once(found: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """The pairs in the order of their rows, each once."""
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, closeness = (np.concatenate(values) for values in zip(empty, *found, strict=True))
    order = np.lexsort((second, first))
    first, second, closeness = first[order], second[order], closeness[order]
    new = np.ones(len(first), bool)
    new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return first[new], second[new], closeness[new]
