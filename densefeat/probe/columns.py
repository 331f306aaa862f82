"""Columns of features of one store or several, side by side in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError
from densefeat.store import Store

_READ_BYTES = 2**27  # of a column, beside the array that is made
_SCORED_BYTES = 2**28
_COMPARED = ("model", "preprocessing", "decoder", "tap")  # of provenance, beside the weights


@dataclass(frozen=True)
class Columns:
    """The rows of ``stores``, one after the other; ``widths``: features of each column that is no map."""

    stores: tuple[Store, ...]
    widths: dict[str, int]

    def width(self, names: Sequence[str]) -> int:
        return sum(self.widths[name] for name in names)

    def read(self, names: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """float32 ``(len(rows), width)``, C-contiguous, made once; ``rows``: positions, ascending.

        Raises UsageError where a feature is NaN or infinite, with its row.
        """
        out = np.empty((len(rows), self.width(names)), np.float32)
        for store, local, done in self._parts(rows):
            at = 0
            for name in names:
                block = out[done : done + len(local), at : at + self.widths[name]]
                _fill(block, store, name, local)
                at += self.widths[name]
        return out

    def pieces(self, names: Sequence[str], rows: np.ndarray) -> Iterator[np.ndarray]:
        """The same, some rows at a time."""
        step = max(1, _SCORED_BYTES // (4 * self.width(names)))
        for start in range(0, len(rows), step):
            yield self.read(names, rows[start : start + step])

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[Store, np.ndarray, int]]:
        """Stores with the rows of theirs that are wanted, and how many were before."""
        first = 0
        for store in self.stores:
            low, high = np.searchsorted(rows, (first, first + len(store)))
            if high > low:
                yield store, rows[low:high] - first, int(low)
            first += len(store)


def _fill(out: np.ndarray, store: Store, name: str, rows: np.ndarray) -> None:
    step = max(1, _READ_BYTES // (4 * out.shape[1]))
    for start in range(0, len(store), step):
        stop = min(start + step, len(store))
        low, high = np.searchsorted(rows, (start, stop))
        if high == low:
            continue
        out[low:high] = store.read(name, start, stop)[rows[low:high] - start]
        bad = np.flatnonzero(~np.isfinite(out[low:high]).all(1))
        if len(bad):
            row = int(rows[low + bad[0]])
            path = store.read("path", row, row + 1)[0]
            raise UsageError(f"{store.path}: {name} of {path!r} has NaN or infinite features: extract it again")


def columns_of(stores: Sequence[Store]) -> tuple[Columns, list[str]]:
    """The columns that can be learnt from, and notes on what is left out.

    Raises UsageError where there is none, or the second store's rows were made in another way than the first's.
    """
    first, notes = stores[0], []
    widths = {name: shape[0] for name, shape in first.shapes.items() if len(shape) == 1}
    maps = [name for name in first.shapes if name not in widths]
    if not widths:
        if maps:
            raise UsageError(f"{first.path} has maps alone ({', '.join(maps)}): extract with --pool avg, or avg,none")
        raise UsageError(f"{first.path} has no vectors to learn from: is it finished, and of densefeat extract?")
    if maps:
        notes.append(f"maps are left out, only pooled features are learnt from: {', '.join(maps)}")
    notes += [f"{store.path} is not finished: {len(store):,} rows are there" for store in stores if not store.complete]
    for other in stores[1:]:
        _check_alike(first, other, widths)
    return Columns(tuple(stores), widths), notes


def _check_alike(first: Store, other: Store, widths: dict[str, int]) -> None:
    for name, width in widths.items():
        if other.shapes.get(name) != (width,):
            there = other.shapes.get(name, "none")
            raise UsageError(f"{other.path}: {name} of {there}, in {first.path} of {width}: extract both in the same way")
    one, two = (_made_how(store) for store in (first, other))
    for name in one:
        if one[name] != two[name]:
            told = f"{name} {_short(two[name])}, {first.path} with {_short(one[name])}"
            raise UsageError(f"{other.path} was made with {told}: extract both in the same way")


def _made_how(store: Store) -> dict[str, object]:
    made = store.provenance
    weights = made.get("weights")
    return {name: made.get(name) for name in _COMPARED} | {
        "weights": weights.get("sha256") if isinstance(weights, dict) else weights
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:80] + "…"
