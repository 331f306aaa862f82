"""How near two vectors are: in float32 for all pairs at once, with a bound on the error; in float64 for the few that matter.

Inside, nearness is "closeness", the larger the nearer: the cosine, the dot product, or minus the euclidean distance.
"""

from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError

_METRICS = ("cosine", "euclidean", "dot")
ROUNDING = float(np.finfo(np.float32).eps) / 2  # largest relative error of one operation
_EXACT_VALUES = 2**20  # turned into float64 at a time


@dataclass(frozen=True)
class Vectors:
    """float32 ``(n, C)``, for cosine scaled to length 1, and the rows' norms ``(n,)``.

    ``usable`` ``(n,)``: False for what is near to nothing: rows with infinities or NaN and, for cosine, of zeros, which have
    no direction. Here they are all zeros.
    """

    rows: np.ndarray
    norms: np.ndarray
    usable: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice) -> "Vectors":
        return Vectors(self.rows[some], self.norms[some], self.usable[some])


def check_metric(metric: str) -> None:
    """Raise UsageError for a metric that there is not."""
    if metric not in _METRICS:
        raise UsageError(f"metric {metric!r}: choose one of {', '.join(_METRICS)}")


def prepare(values: np.ndarray, metric: str) -> Vectors:
    """Rows of any float type, ``(n, …)``; an array that is float32 already is written to."""
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


def approximate(a: Vectors, b: Vectors, metric: str) -> tuple[np.ndarray, float]:
    """float32 ``(len(a), len(b))``, growing with closeness (see :func:`on_scale`), -inf where a row is not usable; and its
    largest error."""
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


def on_scale(closeness: float, metric: str) -> float:
    """Closeness as :func:`approximate` gives it: for euclidean minus half the square of the distance."""
    return -(closeness**2) / 2 if metric == "euclidean" else closeness


def exact(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    """float32 closeness ``(n,)`` of prepared rows ``(n, C)`` with rows ``(n, C)``, or with one ``(1, C)``.

    The same two rows have the same closeness wherever they stand, unlike in a matrix product.
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


def scores(closeness: np.ndarray, metric: str) -> np.ndarray:
    """What people read: similarities as they are, distances without their sign."""
    return -closeness if metric == "euclidean" else closeness
