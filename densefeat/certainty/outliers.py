"""Is an image like those that were learnt from? Distances of its features to the training rows', as a p-value.

Two distances a block: Mahalanobis' with class means and a covariance that the classes share (Lee et al., NeurIPS 2018,
arXiv 1807.03888), shrunk as Ledoit and Wolf's (2004), and the cosine distance to the k-th nearest row (Sun et al., ICML 2022,
arXiv 2204.06507). Their logarithms are standardised and averaged over all blocks; the mean's rank among validation rows is the
p-value of a conformal test (Bates et al., Annals of Statistics 2023, arXiv 2104.08279).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array

from densefeat.errors import UsageError

LEAST_ROWS = 10
_NEIGHBOUR = 10  # the k-th nearest row of the bank
_BANK = 2000  # rows
_SCALING = 2000  # most rows that distances are standardised by
_SHARE = 0.2  # of the training rows, for that
_MAX_MEANS = 1000  # classes that have means of their own
_PIECE_VALUES = 2**21  # 16 MB in float64
TINY = 1e-6  # of distances, before their logarithm; cosines in float32 say nothing about less
_LEAST_DEVIATION = 1e-6  # of logarithms; less is rounding


@dataclass(frozen=True)
class BlockDistances:
    """Two distances from the features of one block to training rows.

    ``mean``: float32 ``(D,)``; ``whitening``: float32 ``(D, D)``; ``centres``: float32 ``(C, D)``. The Mahalanobis distance of
    ``x`` is the smallest Euclidean one of ``(x - mean) @ whitening`` to a centre. ``bank``: float16 ``(M, D)``, rows of length
    1 but for rounding; the other distance is 1 less the k-th largest cosine, ``k`` at most M. ``location``, ``scale``: float64
    ``(2,)``, mean and deviation of the logarithms of both over other training rows.
    """

    mean: np.ndarray
    whitening: np.ndarray
    centres: np.ndarray
    bank: np.ndarray
    k: int
    location: np.ndarray
    scale: np.ndarray

    def distances(self, x: np.ndarray) -> np.ndarray:
        """Compute both distances of features ``(n, D)``, not standardised: float64 ``(n, 2)``, Mahalanobis' first.

        Raises UsageError for another number of features.
        """
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise UsageError(f"features of shape {x.shape}: these outliers are told by shape (rows, {len(self.mean)})")
        out = np.empty((len(x), 2))
        bank = self.unit_bank
        for piece in _row_pieces(len(x), max(len(self.mean), len(bank), len(self.centres))):
            values = x[piece].astype(np.float32)
            out[piece, 0] = _nearest_centre((values - self.mean) @ self.whitening, self.centres)
            out[piece, 1] = _kth_distance(values, bank, self.k)
        return out

    @property
    def unit_bank(self) -> np.ndarray:
        """The bank in float32, with rows of length 1 again: rounding changes lengths by more than near rows may differ."""
        return _normalize(self.bank.astype(np.float32))

    def standardize(self, distances: np.ndarray) -> np.ndarray:
        """Turn distances ``(n, 2)`` into scores: their logarithms, standardised; far above 0 is unusual."""
        return (np.log(np.maximum(distances, TINY)) - self.location) / self.scale


def _row_pieces(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _PIECE_VALUES // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _nearest_centre(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    squares = np.square(values).sum(1)[:, None] - 2 * values @ centres.T + np.square(centres).sum(1)
    return np.sqrt(np.maximum(squares.min(1), 0))


def _kth_distance(values: np.ndarray, bank: np.ndarray, k: int) -> np.ndarray:
    cosines = _normalize(values) @ bank.T
    return 1 - np.partition(cosines, len(bank) - k, axis=1)[:, len(bank) - k]


def _normalize(values: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; rows of zeros stay zeros."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1)


@dataclass(frozen=True)
class OutlierDetector:
    """A test of images against those that were learnt from. ``blocks``: by the name of the column that each reads.

    ``validation``: float64 ``(n,)``, the statistics of validation rows, ascending.
    """

    blocks: dict[str, BlockDistances]
    validation: np.ndarray

    def scores(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Compute the standardised distances of each block, float64 ``(n, blocks, 2)``, in the order of ``blocks``.

        ``features``: by column, ``(n, D)`` each. Raises UsageError if a column is missing or has another size.
        """
        if missing := [name for name in self.blocks if name not in features]:
            raise UsageError(f"no features {', '.join(missing)} for telling outliers: give {', '.join(self.blocks)}")
        return np.stack(
            [block.standardize(block.distances(np.asarray(features[name]))) for name, block in self.blocks.items()], axis=1
        )

    def statistics(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Average the scores of all blocks, float64 ``(n,)``: the higher, the less usual."""
        return self.scores(features).mean((1, 2))

    def p_values(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return for each row the share of validation rows that are no more usual, float64 ``(n,)``, itself counted among them.

        Of rows that are drawn as the validation rows were, at most a share p has a p-value of p or less.
        """
        return self.to_p_values(self.statistics(features))

    def to_p_values(self, statistics: np.ndarray) -> np.ndarray:
        """Turn statistics ``(n,)`` into p-values, ``(1 + validation rows at least as high) / (validation rows + 1)``."""
        higher = len(self.validation) - np.searchsorted(self.validation, statistics, side="left")
        return (1 + higher) / (len(self.validation) + 1)

    def with_validation(self, features: Mapping[str, np.ndarray]) -> "OutlierDetector":
        """Return a detector whose p-values compare with these rows."""
        return replace(self, validation=np.sort(self.statistics(features)))


def _fit_block(x: np.ndarray, classes: np.ndarray | None = None, seed: int = 0) -> BlockDistances:
    """Fit the distances of one block on training rows.

    A fifth of the rows, at most 2,000, drawn by ``seed``, standardise the distances to the others, so that no row is compared
    with itself. Memory beside ``x`` is a few ``(D, D)`` matrices and pieces of rows.

    Args:
        x: float32 ``(n, D)``, finite.
        classes: int64 ``(n,)``; None: one mean for all rows, as for more than 1,000 classes.

    Raises:
        UsageError: Fewer than 10 rows.
    """
    if len(x) < LEAST_ROWS:
        raise UsageError(f"{len(x)} training rows are too few to tell outliers: give at least {LEAST_ROWS}")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(x))
    held = min(_SCALING, max(2, round(_SHARE * len(x))))
    scaling, fitting = np.sort(order[:held]), np.sort(order[held:])
    mean, whitening, centres = _fit_covariance(x, fitting, None if classes is None else classes[fitting])
    bank = _normalize(x[np.sort(generator.permutation(fitting)[:_BANK])]).astype(np.float16)
    k = min(_NEIGHBOUR, max(1, len(bank) // 10))
    unscaled = BlockDistances(mean, whitening, centres, bank, k, np.zeros(2), np.ones(2))
    scores = unscaled.standardize(unscaled.distances(x[scaling]))
    deviation = scores.std(0)
    return replace(unscaled, location=scores.mean(0), scale=np.where(deviation > _LEAST_DEVIATION, deviation, 1.0))


def _fit_covariance(x: np.ndarray, rows: np.ndarray, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean ``(D,)``, the whitening ``(D, D)`` and the centres ``(C, D)`` of some rows, float32.

    Features are standardised before the covariance is shrunk towards the identity; constant ones are left out.
    """
    codes = np.zeros(len(rows), np.int64) if classes is None else np.unique(classes, return_inverse=True)[1].astype(np.int64)
    if codes.max() >= _MAX_MEANS:
        codes[:] = 0
    mean, deviation = _moments(x, rows)
    inverse = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6 * deviation.max())
    centres = np.zeros((int(codes.max()) + 1, x.shape[1]))
    for piece in _row_pieces(len(rows), x.shape[1]):
        own = codes[piece]
        members = csr_array((np.ones(len(own)), (own, np.arange(len(own)))), (len(centres), len(own)))
        centres += members @ ((x[rows[piece]] - mean) * inverse)
    centres /= np.bincount(codes)[:, None]
    square, fourth = np.zeros((x.shape[1], x.shape[1])), 0.0
    for piece in _row_pieces(len(rows), x.shape[1]):
        values = (x[rows[piece]] - mean) * inverse - centres[codes[piece]]
        square += values.T @ values
        fourth += float(np.square(np.square(values).sum(1)).sum())
    square /= len(rows)
    shrinkage, average = _ledoit_wolf(square, fourth, len(rows))
    square *= 1 - shrinkage
    square[np.diag_indices_from(square)] += max(shrinkage, 1e-6) * average
    spectrum, vectors = eigh(square, overwrite_a=True, check_finite=False)
    vectors /= np.sqrt(np.maximum(spectrum, max(1e-6 * spectrum[-1], TINY)))
    return mean.astype(np.float32), (inverse[:, None] * vectors).astype(np.float32), (centres @ vectors).astype(np.float32)


def _moments(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and deviation of the features of some rows, float64 ``(D,)``."""
    mean, square = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for piece in _row_pieces(len(rows), x.shape[1]):
        mean += x[rows[piece]].sum(0, dtype=np.float64)
    mean /= len(rows)
    for piece in _row_pieces(len(rows), x.shape[1]):
        square += np.square(x[rows[piece]] - mean).sum(0)
    return mean, np.sqrt(square / len(rows))


def _ledoit_wolf(covariance: np.ndarray, fourth: float, rows: int) -> tuple[float, float]:
    """Return the share by which a covariance ``(D, D)`` of centred rows is shrunk, and its mean variance.

    ``fourth``: the sum over rows of their length to the power of four. Ledoit and Wolf, A well-conditioned estimator for
    large-dimensional covariance matrices, 2004; the same share as :func:`sklearn.covariance.ledoit_wolf_shrinkage`, which
    needs two more copies of the rows.
    """
    size = len(covariance)
    average = float(np.trace(covariance)) / size
    square = float(np.square(covariance).sum())
    distance = (square - size * average**2) / size
    noise = min((fourth / rows - square) / (size * rows), distance)
    return (noise / distance if noise > 0 else 0.0), average


def fit_outliers(train: Iterable[tuple[str, np.ndarray]], classes: np.ndarray | None, seed: int = 0) -> OutlierDetector:
    """Fit the distances of several blocks on training rows, pairs of a column's name and features, float32 ``(n, D)``.

    Without validation rows yet: see :meth:`OutlierDetector.with_validation`.
    """
    return OutlierDetector({name: _fit_block(x, classes, seed) for name, x in train}, np.empty(0))
