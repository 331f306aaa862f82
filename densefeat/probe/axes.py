"""Features turned into their principal axes, in place where there are more rows than features."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from densefeat.probe.rows import centred, correlated, gram, kernel, pieces

_LEAST_VARIANCE = 1e-13  # of the largest; less is rounding


@dataclass(frozen=True)
class Axes:
    """``x``: float32 ``(n, r)``, centred, on axes of ``variance`` ``(r,)``.

    ``vectors``: the axes ``(D, r)``; or, where ``rows`` ``(n, D)`` are given, what to multiply these by to have them.
    """

    x: np.ndarray
    variance: np.ndarray
    vectors: np.ndarray
    mean: np.ndarray
    rows: np.ndarray | None = None

    def back(self, weight: np.ndarray) -> np.ndarray:
        """Weights ``(K, r)`` on the axes as weights ``(K, D)`` of the features, float64."""
        inner = self.vectors @ weight.T
        return inner.T if self.rows is None else correlated(self.rows, inner).T - np.outer(inner.sum(0), self.mean)


def principal(x: np.ndarray) -> Axes:
    """Of float32 ``(n, D)`` features; with n > D their memory is that of the result."""
    mean = x.mean(0, dtype=np.float64)
    if len(x) > x.shape[1]:
        values, vectors = eigh(gram(x) - len(x) * np.outer(mean, mean), overwrite_a=True, check_finite=False)
        vectors[:, values <= _LEAST_VARIANCE * values[-1]] = 0
        for piece in pieces(x):
            x[piece] = (x[piece] - mean) @ vectors
        return Axes(x, np.maximum(values, 0) / len(x), vectors, mean)
    values, vectors = eigh(centred(kernel(x)), overwrite_a=True, check_finite=False)
    kept = values > _LEAST_VARIANCE * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    turned = (vectors * np.sqrt(values)).astype(np.float32)
    return Axes(turned, values / len(x), vectors / np.sqrt(values), mean, x)
