"""How sure figures are: intervals by bootstrap over the rows, and whether one set of predictions is better than another."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binomtest

from densefeat.errors import UsageError
from densefeat.labels import Targets
from densefeat.probe.metrics import MAIN, main_metric, resampled

_RANKED_RESAMPLES = 200
_MAX_RANKED = 2**25  # scores: these take about ten seconds
_PIECE_COUNTS = 2**25
_PERCENTILES = (2.5, 97.5)


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
    """95 % percentile interval of every metric of :func:`compute_metrics`, over rows drawn with replacement.

    AUROC and mAP: from the first 200 resamples, and None where there are more than ``MAX_RANKED`` scores. Resamples in which a
    metric is undefined are left out; None: undefined in all. Memory is bounded: a piece of the resamples at a time.
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.)
    Raises UsageError as ``metrics``, and for fewer than 2 resamples.
    """
    left = _RANKED_RESAMPLES if scores.size <= _MAX_RANKED else 0
    found: dict[str, list[np.ndarray]] = {}
    for counts in _drawn(len(targets), resamples, seed):
        for name, values in resampled(targets, scores, counts, ranked=left).items():
            found.setdefault(name, []).append(values)
        left = max(0, left - counts.shape[1])
    return {name: _interval(np.concatenate(values)) for name, values in found.items()}


def compare(targets: Targets, first: np.ndarray, second: np.ndarray, seed: int = 0) -> Comparison:
    """Whether one set of predictions for the same rows is better than another by the main metric.

    single: McNemar's test, exact (binomial over the rows that only one of them gets right); else a paired bootstrap, of which
    the p-value is twice the smaller share of resamples at or beyond no difference. The interval is the paired bootstrap's.
    1000 resamples.
    """
    once = np.ones((len(targets), 1), np.uint8)
    difference = (main_metric(targets, first, once) - main_metric(targets, second, once))[0]
    pieces = _drawn(len(targets), 1000, seed)
    spread = np.concatenate([main_metric(targets, first, counts) - main_metric(targets, second, counts) for counts in pieces])
    ends = _interval(spread)
    if ends is None or np.isnan(difference):
        raise UsageError(f"{MAIN[targets.task]} is undefined on these {len(targets)} rows: there is nothing to compare")
    if targets.task == "single":
        return Comparison("top1", "mcnemar", float(difference), ends, _mcnemar(targets.values, first, second))
    spread = spread[~np.isnan(spread)]
    beyond = min(np.count_nonzero(spread <= 0), np.count_nonzero(spread >= 0))
    p_value = min(1.0, 2 * (int(beyond) + 1) / (len(spread) + 1))
    return Comparison(MAIN[targets.task], "paired bootstrap", float(difference), ends, p_value)


def _mcnemar(y: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    one, other = first.argmax(1) == y, second.argmax(1) == y
    better, worse = int(np.count_nonzero(one & ~other)), int(np.count_nonzero(other & ~one))
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _drawn(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """:func:`_draws` in pieces of the resamples; where one is all of them, the next call for the same takes no time."""
    step = max(1, _PIECE_COUNTS // max(1, rows))
    if step >= resamples:
        yield _draws(rows, resamples, seed)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, step):
        yield _counted(generator, rows, min(step, resamples - start))


@lru_cache(maxsize=1)
def _draws(rows: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample has each row: ``(rows, resamples)`` uint8 (that one has a row 256 times does not happen)."""
    if resamples < 2:
        raise UsageError(f"{resamples} resamples: at least 2")
    counts = _counted(np.random.default_rng(seed), rows, resamples)
    counts.flags.writeable = False
    return counts


def _counted(generator: np.random.Generator, rows: int, resamples: int) -> np.ndarray:
    counts = np.zeros((rows, resamples), np.uint8)
    for r in range(resamples if rows else 0):
        counts[:, r] = np.bincount(generator.integers(0, rows, rows), minlength=rows)
    return counts


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, _PERCENTILES)
    return float(low), float(high)
