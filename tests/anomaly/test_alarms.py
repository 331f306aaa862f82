"""The threshold keeps the false-alarm rate on exchangeable scores; p-values; too few images."""

import numpy as np
import pytest

from densefeat.anomaly.alarms import Alarms, check_rate, choose_held_out
from densefeat.errors import UsageError


def test_false_alarms_are_kept() -> None:
    """Over many draws: the mean rate is the one expected, and 95 % of rates are within the interval."""
    generator = np.random.default_rng(0)
    rates, within = [], []
    for _ in range(2000):
        alarms = Alarms(np.sort(generator.exponential(size=59)).astype(np.float32), 0.05)
        rate = np.exp(-alarms.threshold)  # of an exponential distribution
        rates.append(rate)
        within.append(alarms.interval[0] <= rate <= alarms.interval[1])
    assert alarms.expected_rate == 0.05
    assert np.mean(rates) == pytest.approx(0.05, abs=0.002)
    assert np.mean(within) == pytest.approx(0.95, abs=0.015)


def test_p_values_and_verdicts_agree() -> None:
    held_out = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9], np.float32)
    alarms = Alarms(held_out, 0.2)
    assert alarms.threshold == 8
    scores = np.array([0.5, 4, 8, 8.5, 9, 20])
    assert alarms.p_values(scores).tolist() == [1, 0.7, 0.3, 0.2, 0.2, 0.1]
    assert alarms.judge(scores).tolist() == (alarms.p_values(scores) <= 0.2).tolist() == [False, False, False, True, True, True]


def test_p_values_of_good_scores_are_uniform() -> None:
    generator = np.random.default_rng(1)
    p_values = [
        Alarms(np.sort(generator.normal(size=19)).astype(np.float32), 0.1).p_values(generator.normal(size=1))[0]
        for _ in range(4000)
    ]
    for level in (0.05, 0.1, 0.5):
        assert np.mean(np.array(p_values) <= level + 1e-9) == pytest.approx(level, abs=0.025)


@pytest.mark.parametrize(
    ("count", "rate", "held_out"), [(100, 0.05, 20), (60, 0.05, 19), (38, 0.05, 19), (198, 0.01, 99), (1000, 0.01, 200)]
)
def test_how_many_are_held_out(count: int, rate: float, held_out: int) -> None:
    chosen = choose_held_out(count, rate)
    assert (len(chosen), chosen.sum()) == (count, held_out)
    assert np.array_equal(chosen, choose_held_out(count, rate))


@pytest.mark.parametrize(
    ("count", "rate", "message"),
    [
        (
            150,
            0.01,
            r"too few good images .150. for a false-alarm rate of 1 %: that takes 99 held-out images, .* 198 in all; the smallest rate that 150 can give is 1.3 %",
        ),
        (37, 0.05, ".37. .* 38 in all"),
        (1, 0.5, "good images .1. .* these are too few"),
        (0, 0.5, "good images .0."),
    ],
)
def test_too_few(count: int, rate: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_held_out(count, rate)


@pytest.mark.parametrize("rate", [0, -0.1, 0.6, 5, float("nan")])
def test_rates_without_meaning(rate: float) -> None:
    with pytest.raises(UsageError, match="a false-alarm rate of"):
        check_rate(rate)


def test_a_score_that_is_no_number_is_anomalous() -> None:
    alarms, scores = Alarms(np.arange(19, dtype=np.float32), 0.05), np.array([np.nan, np.inf, 3.0])
    assert alarms.judge(scores).tolist() == [True, True, False]
    assert alarms.p_values(scores).tolist() == [1 / 20, 1 / 20, 17 / 20]
