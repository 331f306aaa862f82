"""Temperatures and calibration errors, beside scipy, scikit-learn and sums by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss

from densefeat.certainty.calibration import (
    find_reliability,
    fit_temperature,
    measure_calibration,
    measure_with_intervals,
)
from densefeat.labels import Targets

R = np.random.default_rng(0)
Y = R.integers(0, 4, 400)
SCORES = (R.standard_normal((400, 4)) + 1.5 * np.eye(4)[Y]).astype(np.float32)
SINGLE = Targets("single", ("a", "b", "c", "d"), Y)
MULTI = Targets("multi", ("a", "b", "c", "d"), R.random((400, 4)) < expit(SCORES))


def smoothed_loss(targets: Targets, scores: np.ndarray, temperature: float) -> float:
    share, values = 1 / (len(targets) + 1), scores.astype(np.float64) / temperature
    if targets.task == "multi":
        wanted = targets.values * (1 - share) + share / 2
        return float((wanted * np.logaddexp(0, -values) + (1 - wanted) * np.logaddexp(0, values)).mean())
    logs = log_softmax(values, 1)
    return -float(((1 - share) * logs[np.arange(len(logs)), targets.values] + share * logs.mean(1)).mean())


@pytest.mark.parametrize("targets", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("factor", [0.05, 1.0, 30.0])
def test_the_lowest_log_loss(targets: Targets, factor: float) -> None:
    scores = (factor * SCORES).astype(np.float32)
    found = fit_temperature(targets, scores)
    best = minimize_scalar(lambda log_t: smoothed_loss(targets, scores, np.exp(log_t)), bounds=(-8, 8), method="bounded",
                           options={"xatol": 1e-9})  # fmt: skip
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)


def test_scores_without_errors_or_without_meaning() -> None:
    perfect = np.float32(5) * np.eye(4, dtype=np.float32)[Y]
    temperature = fit_temperature(SINGLE, perfect)
    # one row in 401 has every label equally often, so that the probability of the label is 1 - 0.75 / 401
    assert softmax(perfect[0] / temperature).max() == pytest.approx(1 - 0.75 / 401)
    assert fit_temperature(SINGLE, np.zeros((400, 4), np.float32)) == pytest.approx(2**10)
    assert fit_temperature(SINGLE, -perfect) == pytest.approx(2**10)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_measures(temperature: float) -> None:
    chances = softmax(SCORES.astype(np.float64) / temperature, 1)
    found = measure_calibration(SINGLE, SCORES, temperature)
    assert found["log_loss"] == pytest.approx(log_loss(Y, chances))
    assert found["brier"] == pytest.approx(np.square(chances - np.eye(4)[Y]).sum(1).mean())
    sure, right = chances.max(1), chances.argmax(1) == Y
    error = 0.0
    for low in range(15):
        inside = (sure > low / 15) & (sure <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    assert found["ece"] == pytest.approx(error)
    bins = find_reliability(SINGLE, SCORES, temperature)
    assert bins.count.sum() == 400
    assert (bins.count * np.abs(bins.probability - bins.frequency)).sum() / 400 == pytest.approx(error)


def test_measures_of_several_labels() -> None:
    chances, wanted = expit(SCORES.astype(np.float64)), MULTI.values
    found = measure_calibration(MULTI, SCORES)
    assert found["log_loss"] == pytest.approx(np.mean([log_loss(wanted[:, k], chances[:, k]) for k in range(4)]))
    assert found["brier"] == pytest.approx(np.mean([brier_score_loss(wanted[:, k], chances[:, k]) for k in range(4)]))
    bins = find_reliability(MULTI, SCORES)
    assert bins.count.sum() == 1600
    assert found["ece"] == pytest.approx((bins.count * np.abs(bins.probability - bins.frequency)).sum() / 1600)
    assert measure_calibration(MULTI, 10 * SCORES)["ece"] > found["ece"]


def test_intervals_hold_the_measure() -> None:
    values, intervals = measure_with_intervals(SINGLE, SCORES, resamples=200)
    assert values == measure_calibration(SINGLE, SCORES)
    for name in ("brier", "log_loss"):
        low, high = intervals[name]
        assert low < values[name] < high < 1.3 * values[name]
    assert intervals["ece"][0] > 0
