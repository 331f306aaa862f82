"""The rows and columns of a store that a map shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError
from densefeat.store import Store, parse_columns

_MOST_POINTS = 20_000  # as many as a browser moves smoothly
_READ_BYTES = 2**27
_SEED = 0


@dataclass(frozen=True)
class MapRows:
    """The rows of a store that are points of the map.

    Attributes:
        rows: int64 ``(n,)``, their positions in the store, ascending.
        columns: The column of each block, in the network's order.
        features: float32 ``(n, C)`` for each column.
        notes: What was left out, in words.
    """

    store: Store
    rows: np.ndarray
    columns: dict[str, str]
    features: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def read_map_rows(store: Store, columns: dict[str, str], more: Sequence[str], advance: Callable[[int], None]) -> MapRows:
    """Read at most 20,000 rows, spread evenly over the store, without those that have NaN or infinite features.

    ``columns`` are the blocks' columns, ``more`` others to read beside them. ``advance`` is called with 1 for each column
    read. Raises UsageError if no row is left.
    """
    notes = [] if store.complete else [f"{store.path} is not finished: {len(store):,} rows are there."]
    rows = _sample_rows(len(store), _MOST_POINTS)
    if len(rows) < len(store):
        notes.append(f"{len(rows):,} of {len(store):,} rows: one at random of each {len(store) / _MOST_POINTS:.3g} in turn.")
    features = {}
    for name in dict.fromkeys([*columns.values(), *more]):
        features[name] = _read_rows(store, name, rows)
        advance(1)
    finite = np.logical_and.reduce([np.isfinite(values).all(1) for values in features.values()])
    if not finite.all():
        notes.append(f"{np.count_nonzero(~finite):,} rows with NaN or infinite features are left out: extract them again.")
        rows, features = rows[finite], {name: values[finite] for name, values in features.items()}
    if not len(rows):
        raise UsageError(f"{store.path}: all rows have NaN or infinite features: extract it again")
    return MapRows(store, rows, columns, features, tuple(notes))


def choose_block_columns(store: Store, pool: str | None = None) -> dict[str, str]:
    """Choose for each block, in order, its column of pooled features: that of ``pool``, or the first if ``pool`` is None.

    Raises UsageError if the store has no rows, no pooled features, or none of this pool.
    """
    if not len(store):
        raise UsageError(f"{store.path} has no rows to show")
    vectors = [name for name, shape in store.shapes.items() if len(shape) == 1]
    if not vectors:
        kinds = f"only maps ({', '.join(store.shapes)}): extract with --pool avg, or avg,none" if store.shapes else "no vectors"
        raise UsageError(f"{store.path} has {kinds}")
    parsed = parse_columns(vectors, store.provenance)
    columns: dict[str, str] = {}
    for column in parsed:
        if pool is None or (column.pool or "").partition(":")[0] == pool:
            columns.setdefault(column.block, column.name)
    if not columns:
        pools = dict.fromkeys(column.pool.partition(":")[0] for column in parsed if column.pool)
        there = ", ".join(name for name in pools if name != "none") or "no record of any"
        raise UsageError(f"{store.path} has no features of pool {pool!r}: it has {there}")
    return columns


def _sample_rows(rows: int, most: int) -> np.ndarray:
    """Return positions, int64 and ascending: all, or ``most`` of them, one at random from each of as many equal ranges.

    In this way parts, folders and classes that lie together keep their shares.
    """
    if rows <= most:
        return np.arange(rows)
    starts = np.arange(most + 1) * rows // most
    return np.random.default_rng(_SEED).integers(starts[:-1], starts[1:])


def _read_rows(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """Return a column's ``rows``, which ascend, as float32 ``(len(rows), C)``; a piece of it is in memory at a time."""
    width = int(np.prod(store.shapes[name]))
    out = np.empty((len(rows), width), np.float32)
    step = max(1, _READ_BYTES // (4 * width))
    for start in range(0, len(store), step):
        stop = min(start + step, len(store))
        low, high = np.searchsorted(rows, (start, stop))
        if high > low:
            out[low:high] = store.read(name, start, stop)[rows[low:high] - start]
    return out
