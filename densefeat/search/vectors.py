"""Vectors ready to be compared, and how close two of them are.

Closeness is the cosine, the dot product, or minus the euclidean distance: the larger, the nearer. For all pairs at once it is
estimated in float32, with a bound on the error; for the few pairs that matter it is computed in float64.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError
from densefeat.store import PART_ROWS, Store

_CHUNK_BYTES = 64 * 2**20  # of float32 vectors in memory at a time
_METRICS = ("cosine", "euclidean", "dot")
ROUNDING = float(np.finfo(np.float32).eps) / 2  # largest relative error of one operation
_EXACT_VALUES = 2**20  # turned into float64 at a time


@dataclass(frozen=True)
class Vectors:
    """The rows, float32 ``(n, C)``, scaled to length 1 for cosine, and their norms ``(n,)``.

    ``usable`` ``(n,)``: False for rows that are near to nothing, with infinities or NaN and, for cosine, of zeros, which have
    no direction. Their values here are zeros.
    """

    rows: np.ndarray
    norms: np.ndarray
    usable: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice) -> "Vectors":
        return Vectors(self.rows[some], self.norms[some], self.usable[some])


def check_metric(metric: str) -> None:
    """Raise UsageError for an unknown metric."""
    if metric not in _METRICS:
        raise UsageError(f"metric {metric!r}: choose one of {', '.join(_METRICS)}")


def prepare_vectors(values: np.ndarray, metric: str) -> Vectors:
    """Return rows of any float type, ``(n, …)``, as vectors; an array of float32 is changed in place."""
    rows = np.ascontiguousarray(values.reshape(len(values), -1), np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    usable = np.isfinite(norms)
    if metric == "cosine":
        usable &= norms > 0
    if not usable.all():
        rows[~usable], norms[~usable] = 0, 0
    if metric == "cosine":
        rows /= np.where(usable, norms, 1)[:, None]
        norms = usable.astype(np.float32)
    return Vectors(rows, norms, usable)


def read_chunks(store: Store, column: str, metric: str, start: int = 0) -> Iterator[tuple[int, Vectors]]:
    """Yield (first row, vectors) from a row on; the next chunk is read while one is used."""
    size = int(np.prod(store.shapes[column]))
    rows = max(1, _CHUNK_BYTES // (4 * size))
    rows -= rows % PART_ROWS if rows > PART_ROWS else 0  # whole parts are decompressed only once
    firsts = range(start, len(store), rows)

    def read(first: int) -> tuple[int, Vectors]:
        return first, prepare_vectors(store.read(column, first, min(first + rows, len(store))), metric)

    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read, firsts[0]) if firsts else None
        for following in (*firsts[1:], None):
            if pending is not None:
                chunk = pending.result()
                pending = None if following is None else reader.submit(read, following)
                yield chunk


def estimate_closeness(a: Vectors, b: Vectors, metric: str) -> tuple[np.ndarray, float]:
    """Return products float32 ``(len(a), len(b))`` and their largest error.

    A product grows with closeness (see :func:`to_product`); it is -inf where a row is not usable.
    """
    values = a.rows @ b.rows.T
    longest = float(a.norms.max(initial=0)), float(b.norms.max(initial=0))
    error = (a.rows.shape[1] + 8) * ROUNDING * longest[0] * longest[1]
    if metric == "euclidean":
        values -= a.norms[:, None] ** 2 / 2
        values -= b.norms**2 / 2
        error = (a.rows.shape[1] + 8) * ROUNDING * sum(longest) ** 2
    if not a.usable.all():
        values[~a.usable] = -np.inf
    if not b.usable.all():
        values[:, ~b.usable] = -np.inf
    return values, error


def to_product(closeness: float, metric: str) -> float:
    """Return closeness on the scale of :func:`estimate_closeness`: for euclidean minus half the square of the distance."""
    return -(closeness**2) / 2 if metric == "euclidean" else closeness


def compute_closeness(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    """Return the closeness, float32 ``(n,)``, of prepared rows ``(n, C)`` to rows ``(n, C)``, or to one ``(1, C)``.

    Unlike in a matrix product, it does not depend on the rows' positions.
    """
    step = max(1, _EXACT_VALUES // a.shape[1])
    closeness = np.empty(len(a), np.float32)
    for i in range(0, len(a), step):
        x, y = a[i : i + step].astype(np.float64), (b if len(b) == 1 else b[i : i + step]).astype(np.float64)
        if metric == "euclidean":
            closeness[i : i + step] = -np.sqrt(((x - y) ** 2).sum(1))
        else:
            lengths = np.sqrt((x * x).sum(1) * (y * y).sum(1)) if metric == "cosine" else 1
            closeness[i : i + step] = (x * y).sum(1) / lengths
    return closeness


def to_scores(closeness: np.ndarray, metric: str) -> np.ndarray:
    """Return what people read: similarities unchanged, distances without the minus sign."""
    return -closeness if metric == "euclidean" else closeness
