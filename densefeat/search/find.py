"""A search, from its queries to the result."""

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.errors import UsageError
from densefeat.search import approximate, exact
from densefeat.search.exact import MAX_PAIRS, Advance
from densefeat.search.results import Neighbours, Pairs, Query
from densefeat.store import ImageEntry, Store, choose_column, read_entries

# for each engine its functions for neighbours and for pairs
_ENGINES = {
    "exact": (exact.find_nearest, exact.find_pairs),
    "faiss": (approximate.find_nearest, approximate.find_pairs),
}
_CLOSE_MATCHES = 100_000  # keys that are compared with a misspelt one


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
    progress: Advance | None = None,
) -> Neighbours:
    """Find the k rows of a store nearest to each image file and each key.

    Args:
        images: Files, each embedded as a whole by the network that made the store, with ``weights`` and on ``device``.
        keys: Rows of the store, a tile as ``KEY:X,Y``, a page as ``KEY:pPAGE``, its tile as ``KEY:pPAGE:X,Y``; they need no
            network and are not their own neighbours.
        block, column: As in :func:`densefeat.store.columns.choose_column`; None: the last of the store.
        k, metric, progress: As in :func:`densefeat.search.exact.find_nearest`.
        engine: ``"exact"``, or ``"faiss"``.

    Raises UsageError for an image, key or column that does not exist or cannot be read, WeightsError without the weights.
    """
    find_nearest, _ = _choose_engine(engine)
    name = choose_column(store, block, column)
    if not images and not keys:
        raise UsageError("nothing to search for: give images or keys")
    rows = [_find_row(store, key) for key in keys]
    vectors = []
    if images:
        from densefeat.search.queries import embed_images  # loads torch, which rows of the store do not need

        vectors.append(embed_images(store, name, images, weights, device))
    vectors += [store.read(name, row, row + 1).astype(np.float32) for row in rows]
    entries = read_entries(store, np.array(rows, np.int64))
    queries = [Query(ImageEntry(str(image))) for image in images] + [Query(entries[row], row) for row in rows]
    leave_out = [-1] * len(images) + rows
    result = find_nearest(store, np.concatenate(vectors), name, k, metric, leave_out, progress)
    return Neighbours(store, name, metric, tuple(queries), *result)


def find_duplicates(
    store: Store,
    threshold: float,
    block: int | None = None,
    column: str | None = None,
    metric: str = "cosine",
    engine: str = "exact",
    max_pairs: int = MAX_PAIRS,
    progress: Advance | None = None,
) -> Pairs:
    """Find all pairs of rows at least as similar as ``threshold``, or at most as far apart, and the groups that they form.

    Arguments and errors as in :func:`find_neighbours` and :func:`densefeat.search.exact.find_pairs`.
    """
    _, find_pairs = _choose_engine(engine)
    name = choose_column(store, block, column)
    return Pairs(store, name, metric, threshold, find_pairs(store, name, threshold, metric, max_pairs, progress))


def _choose_engine(engine: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if engine not in _ENGINES:
        raise UsageError(f"engine {engine!r}: choose one of {', '.join(_ENGINES)}")
    return _ENGINES[engine]


def _find_row(store: Store, key: str) -> int:
    """Return the row of a key, with its page and a tile's place where there are several of them.

    UsageError if there is none, with close keys, or several.
    """
    rows = _find_rows(store, key)
    if not len(rows):
        rows = _find_places(store, key)
    if len(rows) == 1:
        return int(rows[0])
    if len(rows):
        example = read_entries(store, rows[:1])[int(rows[0])].name
        raise UsageError(f"key {key!r} has {len(rows)} rows in {store.path}: name one by its place, as in {example}")
    close = difflib.get_close_matches(key, store.column("path").slice(0, _CLOSE_MATCHES).to_pylist(), n=3, cutoff=0.6)
    raise UsageError(f"key {key!r} is not in {store.path}" + (f": did you mean {', '.join(close)}?" if close else ""))


def _find_places(store: Store, name: str) -> np.ndarray:
    """Find the rows that are named by a key, and a page or a tile's place, as :attr:`ImageEntry.name` has it."""
    match = re.fullmatch(r"(.*?)(?::p(\d{1,9}))?(?::(\d{1,9}),(\d{1,9}))?", name, re.DOTALL)
    assert match is not None
    rows = _find_rows(store, match[1])
    for column, value in zip(("page", "x", "y"), match.groups()[1:], strict=True):
        if value is not None:
            rows = rows[store.read(column)[rows] == int(value)] if column in store.schema.names else rows[:0]
    return rows


def _find_rows(store: Store, key: str) -> np.ndarray:
    equal = pc.equal(store.column("path"), pa.scalar(key))
    return np.flatnonzero(equal.combine_chunks().to_numpy(zero_copy_only=False))
