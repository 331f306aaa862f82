"""The protocol ``knn``: votes of the nearest training rows, as in DINO's k-NN evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from densefeat.labels import Targets
from densefeat.probing.fitting import Advance, Choice, check_features, choose_setting
from densefeat.probing.matrices import row_pieces

TEMPERATURE = 0.07
NEIGHBOURS = (10, 20, 100, 200)
_TILE_VALUES = 2**22  # similarities held at a time
LEAST_SHARE = 1e-9


@dataclass(frozen=True)
class KnnHead:
    """A head in which the ``k`` rows of largest cosine vote, weighted by exp(cosine / temperature).

    Source: arXiv 2104.14294, appendix F.1. ``features``: float16 or float32 ``(n, D)``, rows of length 1 or of zeros;
    ``targets``: of these rows.
    """

    features: np.ndarray
    targets: Targets
    k: int
    temperature: float = TEMPERATURE

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Score ``(n, D)`` features of any float type, not normalised; returns float32.

        single ``(n, K)``: log of each class's share of the votes, at least log 1e-9, so that its softmax is the share; multi
        ``(n, K)``: share of the votes less 0.5; regression ``(n,)``: weighted mean of the targets. Memory is bounded: queries
        are processed in pieces. Raises UsageError for another number of features.
        """
        check_features(x, self.features.shape[1])
        scores = [
            _count_votes(near, _vote_weights(similarity, self.temperature), self.targets)
            for similarity, near in _find_nearest(self.features, x, self.k)
        ]
        empty = np.empty((0,) if self.targets.task == "regression" else (0, len(self.targets.classes)), np.float32)
        return np.concatenate([empty, *scores])


def _vote_weights(similarity: np.ndarray, temperature: float = TEMPERATURE) -> np.ndarray:
    """Compute the weights of votes from cosines, float64, at most 1."""
    return np.exp((similarity - 1) / temperature, dtype=np.float64)  # minus 1: no overflow at low temperatures


def _find_nearest(features: np.ndarray, x: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield cosines and positions ``(q, k)`` of the nearest rows, largest first, for a piece of q queries at a time."""
    base = torch.from_numpy(features)
    step = max(1, _TILE_VALUES // len(features))
    for start in range(0, len(x), step):
        queries = _normalized_copy(x[start : start + step])
        similarity = torch.from_numpy(_cosines(queries, base))
        values, near = similarity.topk(k, dim=1)
        yield values.numpy(), near.numpy()


def _cosines(queries: np.ndarray, base: torch.Tensor) -> np.ndarray:
    out = np.empty((len(queries), len(base)), np.float32)
    step = max(1, _TILE_VALUES // max(1, base.shape[1]))
    for start in range(0, len(base), step):
        out[:, start : start + step] = queries @ base[start : start + step].float().numpy().T
    return out


def _count_votes(near: np.ndarray, weights: np.ndarray, targets: Targets) -> np.ndarray:
    """Compute the scores of :meth:`KnnHead.scores` from the nearest rows and their weights, both ``(q, k)``."""
    weights = weights / weights.sum(1, keepdims=True)
    each = len(targets.classes) * (near.shape[1] if targets.task == "multi" else 1)
    step = max(1, _TILE_VALUES // max(1, each))
    parts = [slice(start, start + step) for start in range(0, len(near), step)]
    return np.concatenate([_sum_votes(near[part], weights[part], targets) for part in parts])


def _sum_votes(near: np.ndarray, weights: np.ndarray, targets: Targets) -> np.ndarray:
    """Compute the scores for weights that sum to 1, all rows at once."""
    if targets.task == "regression":
        return (weights * targets.values[near]).sum(1).astype(np.float32)
    if targets.task == "multi":
        return (np.einsum("qk,qkc->qc", weights, targets.values[near]) - 0.5).astype(np.float32)
    classes = len(targets.classes)
    cells = targets.values[near] + classes * np.arange(len(near))[:, None]
    share = np.bincount(cells.ravel(), weights.ravel(), classes * len(near)).reshape(len(near), classes)
    return np.log(np.maximum(share, LEAST_SHARE)).astype(np.float32)


def _normalized_copy(x: np.ndarray) -> np.ndarray:
    """Copy rows to float32 and scale them to length 1; rows of zeros stay zeros."""
    values = x.astype(np.float32)
    _normalize(values)
    return values


def _normalize(x: np.ndarray) -> None:
    """Divide rows by their length in place; rows of zeros stay zeros."""
    for piece in row_pieces(x):
        length = np.linalg.norm(x[piece].astype(np.float64), axis=1, keepdims=True)
        x[piece] /= np.where(length > 0, length, 1)


def fit_knn(x: np.ndarray, targets: Targets, train: int, advance: Advance, refit: bool = True) -> tuple[KnnHead, Choice]:
    """Choose k with votes of the first ``train`` rows for the others, the validation rows; then let all vote if ``refit``.

    ``x``: float32 ``(n, D)``, normalised in place and kept in the head.
    """
    _normalize(x)
    voters, val = targets.take(np.arange(train)), targets.take(np.arange(train, len(x)))
    counts = [k for k in NEIGHBOURS if k <= train] or [train]
    scores: list[list[np.ndarray]] = [[] for _ in counts]  # for each k, of each piece of the validation rows
    for similarity, near in _find_nearest(x[:train], x[train:], counts[-1]):
        for k, pieces in zip(counts, scores, strict=True):
            pieces.append(_count_votes(near[:, :k], _vote_weights(similarity[:, :k]), voters))
    choice, _ = choose_setting("k", zip(counts, scores, strict=True), np.concatenate, val, advance)
    if not refit:
        x, targets = x[:train], voters
    return KnnHead(x, targets, int(choice.chosen["k"])), choice
