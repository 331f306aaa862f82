"""A search from its question to what was found."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from densefeat.errors import UsageError
from densefeat.search import approximate, exact
from densefeat.search.exact import MAX_PAIRS, Progress
from densefeat.search.queries import embed, row_of
from densefeat.search.results import Neighbours, Pairs, Query
from densefeat.store import Store, choose_column
from densefeat.store.entries import ImageEntry, read_entries

_ENGINES = {"exact": exact, "faiss": approximate}


def find_neighbours(
    store: Store,
    images: Sequence[str | Path] = (),
    keys: Sequence[str] = (),
    block: int | None = None,
    column: str | None = None,
    k: int = 10,
    metric: str = "cosine",
    engine: str = "exact",
    weights: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Neighbours:
    """The k rows of a store nearest to each image file and each key.

    Args:
        images: Files, embedded whole by the network that made the store: ``weights``, ``device`` are for it.
        keys: Rows of the store, a tile as ``KEY:X,Y``; they need no network, and do not find themselves.
        block, column: As in :func:`densefeat.store.columns.choose_column`; None: the last of the store.
        k, metric, progress: As in :func:`densefeat.search.exact.nearest`.
        engine: ``"exact"``, or ``"faiss"``.

    Raises UsageError for what does not exist or cannot be read, WeightsError where the network's weights cannot be had.
    """
    search = _engine_of(engine)
    name = choose_column(store, block, column)
    if not images and not keys:
        raise UsageError("nothing to search for: give images or keys")
    rows = [row_of(store, key) for key in keys]
    vectors = [embed(store, name, images, weights, device)] if images else []
    vectors += [store.read(name, row, row + 1).astype(np.float32) for row in rows]
    told = read_entries(store, np.array(rows, np.int64))
    queries = [Query(ImageEntry(str(image))) for image in images] + [Query(told[row], row) for row in rows]
    leave_out = [-1] * len(images) + rows
    found = search.nearest(store, np.concatenate(vectors), name, k, metric, leave_out, progress)
    return Neighbours(store, name, metric, tuple(queries), *found)


def find_duplicates(
    store: Store,
    threshold: float,
    block: int | None = None,
    column: str | None = None,
    metric: str = "cosine",
    engine: str = "exact",
    max_pairs: int = MAX_PAIRS,
    progress: Progress | None = None,
) -> Pairs:
    """All pairs of rows at least as similar as ``threshold``, or at most as far apart, and the groups they form.

    Arguments and errors as in :func:`find_neighbours` and :func:`densefeat.search.exact._near_duplicates`.
    """
    search = _engine_of(engine)
    name = choose_column(store, block, column)
    return Pairs(store, name, metric, threshold, search.near_duplicates(store, name, threshold, metric, max_pairs, progress))


def _engine_of(engine: str) -> ModuleType:
    if engine not in _ENGINES:
        raise UsageError(f"engine {engine!r}: choose one of {', '.join(_ENGINES)}")
    return _ENGINES[engine]
