"""Which features the protocol ``layers`` keeps, and how firmly the data say so."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from densefeat.probing.relevance import find_largest_penalty, fit_group_lasso, measure_moments, measure_relevance

PENALTIES = (0.1, 0.03, 0.01, 0.003)  # of the largest useful one
# small ones, as for the paper's million features, and larger ones: a DenseNet has thousands of pooled features
SHARES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
RESAMPLES = 20
_MOST_ROWS = 10_000  # of a resample
_TOLERANCE = 0.01  # of fits on resamples: a smaller one changes no interval that could be seen
_PERCENTILES = (2.5, 97.5)

Interval = tuple[float, float]


@dataclass(frozen=True)
class RelevanceFit:
    """A group lasso on all features. ``penalty``: as a share of the largest useful one; ``weights``: float64 ``(D, K)``."""

    penalty: float
    absolute_penalty: float
    weights: np.ndarray

    @property
    def relevance(self) -> np.ndarray:
        """The relevance of each feature, float64 ``(D,)``."""
        return measure_relevance(self.weights)


def fit_penalties(x: np.ndarray, y: np.ndarray) -> Iterator[RelevanceFit]:
    """Fit each of ``PENALTIES``, from the strongest on, to features ``(n, D)`` and encoded targets ``(n, K)``."""
    moments = measure_moments(x, y, np.arange(len(x)))
    largest, weights = find_largest_penalty(moments), None
    for penalty in PENALTIES:
        weights = fit_group_lasso(moments, penalty * largest, weights)
        yield RelevanceFit(penalty, penalty * largest, weights)


def keep_features(relevance: np.ndarray, count: int) -> np.ndarray:
    """Return the ascending positions of the ``count`` most relevant features; of equals the first.

    Features without any relevance are not kept, unless all are to be kept.
    """
    if count < len(relevance):
        count = max(1, min(count, int(np.count_nonzero(relevance))))
    return np.sort(np.argsort(-relevance, kind="stable")[:count])


@dataclass(frozen=True)
class Stability:
    """How shares of layers vary over resamples, each float64 ``(R, L)``; R is 0 where all rows are of one group.

    ``kept``: of the kept features, ``relevance``: of its sum. ``agreement``: the mean share of kept features that a resample
    keeps, too. ``rows``: of a resample, on average.
    """

    kept: np.ndarray
    relevance: np.ndarray
    agreement: float | None
    rows: int


def measure_stability(
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    fit: RelevanceFit,
    kept: np.ndarray,
    widths: Sequence[int],
    seed: int,
    advance: Callable[[int], None],
) -> Stability:
    """Fit again on bootstrap resamples of the rows, with the same penalty, and keep as many features of each fit.

    Groups are drawn with replacement, and all rows of a group with it. A resample has about as many rows as there are, but
    10,000 at most: of more rows, intervals are too wide rather than too narrow.
    """
    kept_shares, relevance_shares, agreements, rows = [], [], [], []
    for drawn in _draw_resamples(groups, seed):
        moments = measure_moments(x, y, drawn)
        relevance = measure_relevance(fit_group_lasso(moments, fit.absolute_penalty, fit.weights, _TOLERANCE))
        again = keep_features(relevance, len(kept))
        kept_shares.append(share_by_layer(mark_kept(again, len(relevance)), widths))
        relevance_shares.append(share_by_layer(relevance, widths))
        agreements.append(np.isin(kept, again).mean())
        rows.append(len(drawn))
        advance(1)
    shape = len(rows), len(widths)
    agreement = float(np.mean(agreements)) if rows else None
    mean_rows = round(float(np.mean(rows))) if rows else 0
    return Stability(np.reshape(kept_shares, shape), np.reshape(relevance_shares, shape), agreement, mean_rows)


def _draw_resamples(groups: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield ascending positions of rows, with repetitions; nothing if there is one group alone."""
    members = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(members)
    if len(sizes) < 2:
        return
    rows_of = np.split(np.argsort(members, kind="stable"), np.cumsum(sizes)[:-1])
    count = max(1, round(len(sizes) * min(1, _MOST_ROWS / len(members))))
    generator = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(sizes), count)
        yield np.sort(np.concatenate([rows_of[group] for group in drawn]))


def mark_kept(kept: np.ndarray, features: int) -> np.ndarray:
    """Return 1 for the features that are kept, 0 for others, float64 ``(D,)``."""
    marks = np.zeros(features)
    marks[kept] = 1
    return marks


def sum_by_layer(values: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Sum the values ``(D,)`` of each layer."""
    return np.add.reduceat(values, np.cumsum(widths) - np.asarray(widths))


def share_by_layer(values: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Return the share of each layer in the sum of values ``(D,)``; zeros if the sum is zero."""
    sums = sum_by_layer(values, widths)
    return sums / sums.sum() if sums.sum() > 0 else sums


def find_intervals(shares: np.ndarray) -> list[Interval | None]:
    """Return the interval from 2.5 to 97.5 % of each layer's shares ``(R, L)``; None without resamples."""
    if not len(shares):
        return [None] * shares.shape[1]
    low, high = np.percentile(shares, _PERCENTILES, axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
