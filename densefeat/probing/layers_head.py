"""The head of the protocol ``layers``: features normalised by layer, some of them kept, and a linear map on these."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from densefeat.probing.fitting import check_features
from densefeat.probing.matrices import row_pieces


@dataclass(frozen=True)
class LayersHead:
    """A linear head on some features, each divided by the Euclidean norm of its layer in the same row.

    ``widths``: features of each layer, in the order of the features, D together. ``kept``: positions of the m features that are
    read, int64 ``(m,)``, ascending. ``weight``: float32 ``(K, m)``; ``bias``: float32 ``(K,)``. ``squeeze``: scores are
    ``(n,)`` (regression, K = 1).
    """

    widths: tuple[int, ...]
    kept: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    squeeze: bool = False

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Score ``(n, D)`` features of any float type: float32 ``(n, K)``, or ``(n,)`` with ``squeeze``.

        Computes in pieces of rows. Raises UsageError for another number of features.
        """
        check_features(x, sum(self.widths))
        out = np.empty((len(x), len(self.weight)), np.float32)
        for piece in row_pieces(x):
            rows = x[piece].astype(np.float32)  # a copy, which is then changed
            normalize_layers(rows, self.widths)
            out[piece] = rows[:, self.kept] @ self.weight.T + self.bias
        return out[:, 0] if self.squeeze else out


def normalize_layers(x: np.ndarray, widths: Sequence[int]) -> None:
    """Divide float32 ``(n, D)`` features in place by the norm of their layer in each row; a layer of zeros stays as it is."""
    for piece in row_pieces(x):
        x[piece] *= scale_layers(x[piece], widths)


def scale_layers(x: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Compute what :func:`normalize_layers` multiplies ``(n, D)`` features by, float64 ``(n, D)``: 0 for a layer of zeros."""
    sizes = np.asarray(widths)
    norms = np.sqrt(np.add.reduceat(np.square(x, dtype=np.float64), np.cumsum(sizes) - sizes, axis=1))
    scale = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    return np.repeat(scale, sizes, axis=1)
