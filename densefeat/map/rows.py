"""Which rows and columns of a store a map shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError
from densefeat.store import Store, pools_of

_POINTS = 20_000  # that a browser moves smoothly
_READ_BYTES = 2**27
_SEED = 0


@dataclass(frozen=True)
class Shown:
    """``rows``: int64 ``(n,)``, positions in the store, ascending; ``columns``: by block, in order; ``features``: float32
    ``(n, C)`` by column; ``notes``: what was left out.
    """

    store: Store
    rows: np.ndarray
    columns: dict[str, str]
    features: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def shown_rows(store: Store, columns: dict[str, str], more: Sequence[str], progress: Callable[[int], None]) -> Shown:
    """At most 20,000 rows, spread evenly over the store, without those that have NaN or infinite features.

    ``columns``: by block; ``more``: those to be read beside them; ``progress``: called with 1 for each that is read.
    Raises UsageError where no row is left.
    """
    notes = [] if store.complete else [f"{store.path} is not finished: {len(store):,} rows are there."]
    rows = _sampled(len(store), _POINTS)
    if len(rows) < len(store):
        notes.append(f"{len(rows):,} of {len(store):,} rows: one at random of each {len(store) / _POINTS:.3g} in turn.")
    features = {}
    for name in dict.fromkeys([*columns.values(), *more]):
        features[name] = _read_rows(store, name, rows)
        progress(1)
    sound = np.logical_and.reduce([np.isfinite(values).all(1) for values in features.values()])
    if not sound.all():
        notes.append(f"{np.count_nonzero(~sound):,} rows with NaN or infinite features are left out: extract them again.")
        rows, features = rows[sound], {name: values[sound] for name, values in features.items()}
    if not len(rows):
        raise UsageError(f"{store.path}: all rows have NaN or infinite features: extract it again")
    return Shown(store, rows, columns, features, tuple(notes))


def columns_of_blocks(store: Store, pool: str | None = None) -> dict[str, str]:
    """The column of pooled features of each block, in order; of several the one of ``pool``, None: the first.

    Raises UsageError: no rows, no pooled features, no such pool.
    """
    if not len(store):
        raise UsageError(f"{store.path} has no rows to show")
    vectors = [name for name, shape in store.shapes.items() if len(shape) == 1]
    if not vectors:
        told = f"maps alone ({', '.join(store.shapes)}): extract with --pool avg, or avg,none" if store.shapes else "no vectors"
        raise UsageError(f"{store.path} has {told}")
    specs = pools_of(store.provenance) if store.provenance.get("pool") else []
    pools = [spec.partition(":")[0] for spec in specs]
    columns: dict[str, str] = {}
    for name in vectors:
        block, own = _split_name(name, pools)
        if pool is None or own == pool:
            columns.setdefault(block, name)
    if not columns:
        there = ", ".join(name for name in pools if name != "none") or "no record of any"
        raise UsageError(f"{store.path} has no features of pool {pool!r}: it has {there}")
    return columns


def _split_name(column: str, pools: Sequence[str]) -> tuple[str, str | None]:
    """The block and the pool of a column; of a store with one pool the columns are called as the blocks."""
    block, _, pool = column.rpartition("_")
    if len(pools) > 1 and pool in pools:
        return block, pool
    return column, pools[0] if len(pools) == 1 else None


def _sampled(rows: int, most: int) -> np.ndarray:
    """int64, ascending: all positions, or ``most`` of them, one at random from each of as many equal stretches.

    Parts, folders and classes that stand together keep their shares, and no period of the list is missed or met.
    """
    if rows <= most:
        return np.arange(rows)
    starts = np.arange(most + 1) * rows // most
    return np.random.default_rng(_SEED).integers(starts[:-1], starts[1:])


def _read_rows(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """float32 ``(len(rows), C)`` of a column, a part of it in memory at a time; ``rows``: ascending."""
    width = int(np.prod(store.shapes[name]))
    out = np.empty((len(rows), width), np.float32)
    step = max(1, _READ_BYTES // (4 * width))
    for start in range(0, len(store), step):
        stop = min(start + step, len(store))
        low, high = np.searchsorted(rows, (start, stop))
        if high > low:
            out[low:high] = store.read(name, start, stop)[rows[low:high] - start]
    return out
