"""How sure figures are: intervals by bootstrap over the rows, and whether one set of predictions is better than another."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from densefeat.errors import UsageError
from densefeat.heads.metrics import MAIN, main_metric, resampled
from densefeat.heads.targets import Targets

RANKED_RESAMPLES = 200
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Comparison:
    """First less second, of the task's main metric. ``interval``: 95 %; ``p_value``: two-sided."""

    metric: str
    test: str
    difference: float
    interval: tuple[float, float]
    p_value: float


def bootstrap(
    targets: Targets, scores: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """95 % percentile interval of every metric of :func:`densefeat.heads.metrics.metrics`, over rows drawn with replacement.

    AUROC and mAP: from the first 200 resamples. Resamples in which a metric is undefined are left out; None: undefined in all.
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.)
    Raises UsageError as ``metrics``, and for fewer than 2 resamples.
    """
    found = resampled(targets, scores, draws(len(targets), resamples, seed), ranked=RANKED_RESAMPLES)
    return {name: interval(values) for name, values in found.items()}


def compare(targets: Targets, first: np.ndarray, second: np.ndarray, seed: int = 0) -> Comparison:
    """Whether one set of predictions for the same rows is better than another by the main metric.

    single: McNemar's test, exact (binomial over the rows that only one of them gets right); else a paired bootstrap, of which
    the p-value is twice the smaller share of resamples at or beyond no difference. The interval is the paired bootstrap's.
    1000 resamples.
    """
    counts = draws(len(targets), 1000, seed)
    once = np.ones((len(targets), 1), np.uint8)
    difference = (main_metric(targets, first, once) - main_metric(targets, second, once))[0]
    spread = main_metric(targets, first, counts) - main_metric(targets, second, counts)
    ends = interval(spread)
    if ends is None or np.isnan(difference):
        raise UsageError(f"{MAIN[targets.task]} is undefined on these {len(targets)} rows: there is nothing to compare")
    if targets.task == "single":
        return Comparison("top1", "mcnemar", float(difference), ends, mcnemar(targets.values, first, second))
    spread = spread[~np.isnan(spread)]
    beyond = min(np.count_nonzero(spread <= 0), np.count_nonzero(spread >= 0))
    p_value = min(1.0, 2 * (int(beyond) + 1) / (len(spread) + 1))
    return Comparison(MAIN[targets.task], "paired bootstrap", float(difference), ends, p_value)


def mcnemar(y: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    one, other = first.argmax(1) == y, second.argmax(1) == y
    better, worse = int(np.count_nonzero(one & ~other)), int(np.count_nonzero(other & ~one))
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def draws(rows: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample has each row: ``(rows, resamples)`` uint8 (that one has a row 256 times does not happen)."""
    if resamples < 2:
        raise UsageError(f"{resamples} resamples: at least 2")
    generator = np.random.default_rng(seed)
    counts = np.empty((rows, resamples), np.uint8)
    for r in range(resamples):
        counts[:, r] = np.bincount(generator.integers(0, rows, rows), minlength=rows) if rows else 0
    return counts


def interval(values: np.ndarray) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, PERCENTILES)
    return float(low), float(high)
