"""A linear map of features, as the linear probes end in."""

from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError

_PIECE_VALUES = 2**22


@dataclass(frozen=True)
class Linear:
    """``x @ weight.T + bias`` of features as they are stored: any standardisation is in ``weight`` and ``bias`` already.

    ``weight``: float32 ``(K, D)``; ``bias``: float32 ``(K,)``. ``squeeze``: one score a row instead of K = 1 (regression).
    """

    weight: np.ndarray
    bias: np.ndarray
    squeeze: bool = False

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Float32 ``(n, K)``, or ``(n,)`` where it squeezes, of ``(n, D)`` features of any float type.

        In pieces of rows, in float32. Raises UsageError for another number of features.
        """
        check_features(x, self.weight.shape[1])
        out = np.empty((len(x), len(self.weight)), np.float32)
        step = max(1, _PIECE_VALUES // max(1, x.shape[1]))
        for start in range(0, len(x), step):
            piece = x[start : start + step].astype(np.float32, copy=False)
            np.matmul(piece, self.weight.T, out=out[start : start + step])
        out += self.bias
        return out[:, 0] if self.squeeze else out


def check_features(x: np.ndarray, size: int) -> None:
    if x.ndim != 2 or x.shape[1] != size:
        raise UsageError(f"features of shape {x.shape}: this head takes (rows, {size})")
