"""A head that pools maps by attention: learnt queries over positions, then a linear classifier."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from densefeat.errors import UsageError

_PIECE_VALUES = 2**24  # numbers of maps scored at a time


@dataclass(frozen=True)
class AttentiveHead:
    """Efficient probing: M queries for each column of maps, each of which pools a group of values over the positions.

    For maps x ``(C, positions)`` of a column, query m has the weights ``a_m = softmax(q_m · x)`` over positions and pools to
    ``V_m (x a_m)``, d numbers. The M·d numbers of each column, side by side, go through one linear classifier. The channels
    themselves are the keys.

    Source: Psomas et al., "Attention, Please!", arXiv 2506.10178 (no key projection, values split among the queries).
    There, no normalisation stands before the queries; here channels are standardised, as in AIM (arXiv 2401.08541), and the
    arrays include that, the scale ``C^-0.5`` of the queries too.

    ``queries``: for each column, float32 ``(M, C)``; ``values``: float32 ``(M, d, C)``; ``weight``: float32 ``(K, D)`` for the
    D = Σ M·d pooled numbers, by column, then query; ``bias``: float32 ``(K,)``.
    """

    queries: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    weight: np.ndarray
    bias: np.ndarray

    def scores(self, maps: Iterable[np.ndarray]) -> np.ndarray:
        """Score maps ``(n, C, H, W)`` of any float type, one array for each column: float32 ``(n, K)``.

        Computes in float32. Raises UsageError for other columns or channels.
        """
        columns = list(maps)
        self._check(columns)
        rows = len(columns[0])
        out = np.empty((rows, len(self.bias)), np.float32)
        step = max(1, _PIECE_VALUES // max(x[0].size for x in columns)) if rows else 1
        for start in range(0, rows, step):
            pieces = [x[start : start + step] for x in columns]
            pooled = [pool_maps(*arrays) for arrays in zip(pieces, self.queries, self.values, strict=True)]
            out[start : start + step] = np.concatenate(pooled, axis=1) @ self.weight.T + self.bias
        return out

    def _check(self, columns: list[np.ndarray]) -> None:
        wanted = tuple(query.shape[1] for query in self.queries)
        shapes = [x.shape for x in columns]
        if [len(shape) for shape in shapes] != [4] * len(wanted) or tuple(shape[1] for shape in shapes) != wanted:
            told = ", ".join(map(str, shapes)) or "none"
            raise UsageError(f"maps of shapes {told}: this head takes (rows, C, H, W) with C = {', '.join(map(str, wanted))}")
        if len({shape[0] for shape in shapes}) > 1 or not all(shape[2] * shape[3] for shape in shapes):
            raise UsageError(f"maps of shapes {', '.join(map(str, shapes))}: give as many rows of each, and some positions")


def pool_maps(maps: np.ndarray, queries: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Pool ``(n, C, H, W)`` to ``(n, M·d)``."""
    x = maps.astype(np.float32, copy=False).reshape(*maps.shape[:2], -1)
    attention = queries @ x
    attention -= attention.max(2, keepdims=True)
    np.exp(attention, out=attention)
    attention /= attention.sum(2, keepdims=True)
    pooled = attention @ x.transpose(0, 2, 1)
    return (pooled.transpose(1, 0, 2) @ values.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(x), -1)
