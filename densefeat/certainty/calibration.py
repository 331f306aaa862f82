"""Probabilities that mean what they say: a temperature fitted on validation rows, and how far probabilities are off.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599: temperature scaling (section 4.2) and the
expected calibration error over 15 bins of equal width (section 2).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, softmax

from densefeat.labels import Targets, Task

_BINS = 15
# a class without training rows has a score of -10,000: with the largest temperature it is still improbable
TEMPERATURES = (2.0**-20, 2.0**10)
_PIECE_VALUES = 2**22  # scores or counts converted at a time
_PERCENTILES = (2.5, 97.5)


def fit_temperature(targets: Targets, scores: np.ndarray) -> float:
    """Find the temperature T for which ``scores / T`` have the lowest log loss, by Brent's method on its slope.

    The loss is convex in 1/T. Labels are smoothed by 1 / (n + 1), as if one more row had every label equally often: without
    that, rows that are all classified correctly would ask for T = 0. (Platt, 1999, smooths his targets in the same way.)

    Args:
        targets: single or multi; a class whose scores are the same for every row should be left out.
        scores: float ``(n, K)``, finite. single: softmax is taken; multi: the sigmoid of each, with one temperature for all.

    Returns:
        T within 2**-20 and 2**10; the largest means that the scores say nothing about the labels.
    """
    smoothing = 1 / (len(targets) + 1)

    def slope(log_t: float) -> float:
        """Compute the derivative of the log loss by 1/T."""
        return -_log_loss_slope(targets, scores, float(np.exp(-log_t)), smoothing)

    low, high = np.log(TEMPERATURES).tolist()
    if slope(high) <= 0:  # the loss falls all the way to nearly equal probabilities
        return TEMPERATURES[1]
    if slope(low) >= 0:
        return TEMPERATURES[0]
    return float(np.clip(np.exp(brentq(slope, low, high, xtol=1e-10)), *TEMPERATURES))


def _log_loss_slope(targets: Targets, scores: np.ndarray, inverse: float, smoothing: float) -> float:
    total = 0.0
    for piece in _row_pieces(scores):
        values, labels = scores[piece].astype(np.float64), targets.values[piece]
        if targets.task == "multi":
            wanted = labels * (1 - smoothing) + smoothing / 2
            total += float(((expit(inverse * values) - wanted) * values).mean(1).sum())
        else:
            own = values[np.arange(len(values)), labels]
            expected = (softmax(inverse * values, axis=1) * values).sum(1)
            total += float((expected - (1 - smoothing) * own - smoothing * values.mean(1)).sum())
    return total / max(1, len(scores))


def to_probabilities(task: Task, scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probability of each class, float64 ``(n, K)``: single, they sum to 1; multi, each for itself."""
    values = scores.astype(np.float64) / temperature
    return expit(values) if task == "multi" else softmax(values, axis=1)


def _row_pieces(values: np.ndarray) -> list[slice]:
    step = max(1, _PIECE_VALUES // max(1, values.shape[1]))
    return [slice(start, start + step) for start in range(0, len(values), step)]


def judge_answers(targets: Targets, scores: np.ndarray) -> np.ndarray:
    """Return which answers to rows ``(n, K)`` are right, bool ``(n,)``: single, the class; multi, all labels of a row."""
    if targets.task == "multi":
        return np.asarray(((scores > 0) == targets.values).all(1))
    return np.asarray(scores.argmax(1) == targets.values)


@dataclass(frozen=True)
class ReliabilityBins:
    """The data of a reliability picture: 15 bins of equal width, by probability.

    ``count``: int64 ``(15,)``, answers in each bin; ``probability``, ``frequency``: float64 ``(15,)``, the mean probability and
    the share of answers that are right, 0 in empty bins.
    """

    count: np.ndarray
    probability: np.ndarray
    frequency: np.ndarray


def _list_answers(targets: Targets, scores: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of each answer and whether it is right, ``(n, A)`` each.

    single: A = 1, the most probable class; multi: A = K, every class, which is "right" where a row has it.
    """
    chances = to_probabilities(targets.task, scores, temperature)
    if targets.task == "multi":
        return chances, targets.values
    return chances.max(1, keepdims=True), judge_answers(targets, scores)[:, None]


def _find_bins(chances: np.ndarray) -> np.ndarray:
    return np.clip(np.ceil(chances * _BINS).astype(np.int64) - 1, 0, _BINS - 1)


def find_reliability(targets: Targets, scores: np.ndarray, temperature: float = 1.0) -> ReliabilityBins:
    """Compare probabilities with how often they come true. single: the most probable class; multi: every class of every row."""
    chances, right = _list_answers(targets, scores, temperature)
    places = _find_bins(chances).ravel()
    count, chance, hits = (
        np.bincount(places, weights, _BINS) for weights in (None, chances.ravel(), right.ravel().astype(np.float64))
    )
    return ReliabilityBins(count, chance / np.maximum(count, 1), hits / np.maximum(count, 1))


def measure_calibration(targets: Targets, scores: np.ndarray, temperature: float = 1.0) -> dict[str, float]:
    """Compute how far probabilities are from what happens, by name; lower is better.

    ``ece``: the expected calibration error, 0 to 1, over the bins of :func:`find_reliability`. ``brier``: the squared error of
    the probabilities, single: summed over classes, 0 to 2; multi: averaged over them, 0 to 1. ``log_loss``: in nats, multi:
    averaged over classes. All are means over rows. ``scores``: float ``(n, K)``, n at least 1.
    """
    columns = _row_columns(targets, scores, temperature)
    return _summarize(columns.mean(0, keepdims=True))[0]


def measure_with_intervals(
    targets: Targets, scores: np.ndarray, temperature: float = 1.0, resamples: int = 1000, seed: int = 0
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return what :func:`measure_calibration` does, and 95 % percentile intervals over rows drawn with replacement.

    The calibration error of a resample is higher than that of the rows on average, because its bins are noisier.
    """
    columns = _row_columns(targets, scores, temperature)
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        counts = np.bincount(generator.integers(0, len(columns), len(columns)), minlength=len(columns))
        drawn.append(counts @ columns / len(columns))
    spread = _summarize(np.array(drawn))
    values = {name: [each[name] for each in spread] for name in spread[0]}
    intervals = {name: tuple(np.percentile(each, _PERCENTILES).tolist()) for name, each in values.items()}
    return _summarize(columns.mean(0, keepdims=True))[0], intervals


def _row_columns(targets: Targets, scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return for each row its Brier score, its log loss, and its excess of probability over hits in each bin: ``(n, 17)``."""
    columns = np.empty((len(scores), 2 + _BINS))
    for piece in _row_pieces(scores):
        rows = targets.take(np.arange(len(scores))[piece])
        values = scores[piece].astype(np.float64) / temperature
        chances = to_probabilities(targets.task, scores[piece], temperature)
        if targets.task == "multi":
            columns[piece, 0] = np.square(chances - rows.values).mean(1)
            columns[piece, 1] = np.logaddexp(0, np.where(rows.values, -values, values)).mean(1)
        else:
            own = np.arange(len(values)), rows.values
            columns[piece, 0] = np.square(chances).sum(1) - 2 * chances[own] + 1
            top = values.max(1)
            columns[piece, 1] = np.log(np.exp(values - top[:, None]).sum(1)) + top - values[own]
        answered, right = _list_answers(rows, scores[piece], temperature)
        places, excess = _find_bins(answered), (answered - right) / answered.shape[1]
        cells = places + _BINS * np.arange(len(places))[:, None]
        columns[piece, 2:] = np.bincount(cells.ravel(), excess.ravel(), _BINS * len(places)).reshape(-1, _BINS)
    return columns


def _summarize(means: np.ndarray) -> list[dict[str, float]]:
    """Turn means of the columns of :func:`_row_columns`, one set a line, into figures."""
    return [{"ece": float(np.abs(line[2:]).sum()), "brier": float(line[0]), "log_loss": float(line[1])} for line in means]
