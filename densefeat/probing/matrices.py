"""Products and scalings of feature matrices, in place and in pieces of rows, with sums in float64."""

from collections.abc import Iterator

import numpy as np

from densefeat.errors import UsageError

_PIECE_VALUES = 2**20  # 8 MB in float64


def row_pieces(x: np.ndarray) -> Iterator[slice]:
    """Divide the rows into pieces of about 8 MB in float64."""
    step = max(1, _PIECE_VALUES // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        yield slice(start, min(start + step, len(x)))


def check_finite(x: np.ndarray) -> None:
    """Raise UsageError if there are NaN or infinite values."""
    bad = np.concatenate([np.empty(0, np.int64)] + [p.start + np.flatnonzero(~np.isfinite(x[p]).all(1)) for p in row_pieces(x)])
    if len(bad):
        raise UsageError(
            f"{len(bad)} of {len(x)} rows of features have NaN or infinite values, row {bad[0]} first: leave them out"
        )


def move_validation_last(x: np.ndarray, val: np.ndarray) -> np.ndarray:
    """Swap rows in place so that the validation rows come last; return the former position of each row, ``(n,)``."""
    order = np.arange(len(x))
    train = len(x) - np.count_nonzero(val)
    early, late = np.flatnonzero(val[:train]), train + np.flatnonzero(~val[train:])
    step = max(1, _PIECE_VALUES // max(1, x.shape[1]))
    for start in range(0, len(early), step):
        one, other = early[start : start + step], late[start : start + step]
        x[one], x[other] = x[other], x[one]
    order[early], order[late] = late, early
    return order


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation of each feature, float64 ``(D,)``; the deviation of a constant one is 0."""
    first = x[0].astype(np.float64)
    shift, square = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for piece in row_pieces(x):
        values = x[piece] - first
        shift += values.sum(0)
        square += np.einsum("ij,ij->j", values, values)
    shift /= len(x)
    variance = square / len(x) - shift**2
    return first + shift, np.where(variance > 1e-12 * square / len(x), np.sqrt(np.maximum(variance, 0)), 0)


def invert_deviation(deviation: np.ndarray) -> np.ndarray:
    """Return the factors that scale features to a deviation of 1, and constant ones to 0."""
    return np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)


def rescale(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> None:
    """Replace ``x`` by ``(x - mean) * scale``, computed in float64."""
    for piece in row_pieces(x):
        x[piece] = (x[piece] - mean) * scale


def gram(x: np.ndarray) -> np.ndarray:
    """Compute ``x.T @ x`` in float64, ``(D, D)``."""
    out = np.zeros((x.shape[1], x.shape[1]))
    for piece in row_pieces(x):
        values = x[piece].astype(np.float64)
        out += values.T @ values
    return out


def kernel(x: np.ndarray) -> np.ndarray:
    """Compute ``x @ x.T`` in float64, ``(n, n)``."""
    out = np.zeros((len(x), len(x)))
    step = max(1, _PIECE_VALUES // len(x))
    for start in range(0, x.shape[1], step):
        values = x[:, start : start + step].astype(np.float64)
        out += values @ values.T
    return out


def centre_kernel(values: np.ndarray) -> np.ndarray:
    """Turn the kernel ``(n, n)`` of features into the kernel of the centred features."""
    rows = values.mean(0)
    return values - rows - rows[:, None] + rows.mean()


def correlate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute ``x.T @ y`` in float64, ``(D, K)``."""
    out = np.zeros((x.shape[1], y.shape[1]))
    for piece in row_pieces(x):
        out += x[piece].T.astype(np.float64) @ y[piece]
    return out
