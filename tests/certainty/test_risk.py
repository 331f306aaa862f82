"""Promised risks: exact tests by hand, promises that hold in simulations, and what cannot be promised."""

import numpy as np
import pytest
from scipy.stats import beta

from densefeat.certainty.risk import find_threshold
from densefeat.errors import UsageError


def draw(generator: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated answers: confidence c is right with probability c."""
    confidence = np.sort(np.sqrt(generator.uniform(0.25, 1, rows)))
    return confidence, generator.random(rows) < confidence


@pytest.mark.parametrize(("rows", "risk"), [(200, 0.2), (1000, 0.1), (3000, 0.05)])
def test_promises_hold(rows: int, risk: float) -> None:
    """In at least 90 % of draws, up to chance: 4 standard deviations of 400 draws."""
    generator, kept, given = np.random.default_rng(0), [], []
    for _ in range(400):
        confidence, right = draw(generator, rows)
        try:
            threshold = find_threshold(confidence, right, risk).threshold
        except UsageError:
            continue
        above = np.linspace(max(threshold**2, 0.25), 1, 2001)
        kept.append(float((1 - np.sqrt(above)).mean()) <= risk)
        given.append((1 - max(threshold**2, 0.25)) / 0.75)
    assert len(kept) > 200
    assert np.mean(kept) > 0.9 - 4 * np.sqrt(0.09 / len(kept))
    assert np.mean(given) > 0.1


def test_by_clopper_and_pearson() -> None:
    """Answers at a threshold have an upper bound of the risk, at a level of 5 %, that is no more than promised."""
    confidence, right = draw(np.random.default_rng(1), 2000)
    found = find_threshold(confidence, right, 0.08)
    given = confidence >= found.threshold
    assert (found.answered, found.wrong) == (given.mean(), (~right[given]).mean())
    bound = beta.ppf(0.95, (~right[given]).sum() + 1, right[given].sum())
    assert bound <= 0.08
    assert given.sum() % 100 == 0  # steps of 5 % of the rows


def test_everything_is_answered_if_all_is_right() -> None:
    confidence = np.linspace(0.3, 0.9, 59)
    assert find_threshold(confidence, np.ones(59, bool), 0.05).threshold == 0.3
    with pytest.raises(UsageError, match=r"58 validation rows cannot promise .* 5 % .*: that takes 59 at least"):
        find_threshold(confidence[1:], np.ones(58, bool), 0.05)


def test_equal_confidences_are_answered_together() -> None:
    confidence = np.sort(np.repeat([0.2, 0.6, 0.9], 100))
    right = confidence > 0.5
    assert find_threshold(confidence, right, 0.1).threshold == 0.6
    assert find_threshold(np.full(300, 1.0), np.ones(300, bool), 0.1).answered == 1


def test_what_cannot_be_promised() -> None:
    confidence, right = draw(np.random.default_rng(0), 400)
    with pytest.raises(UsageError, match=r"cannot promise .* 1 % .* smallest risk that they can promise is (0\.\d+)") as caught:
        find_threshold(confidence, right, 0.01)
    smallest = float(str(caught.value).split("promise is ")[1].split(";")[0])
    assert find_threshold(confidence, right, smallest).answered > 0
    with pytest.raises(UsageError, match="cannot promise"):
        find_threshold(confidence, right, smallest - 0.001)


@pytest.mark.parametrize("risk", [0, 1, -0.1, 5, float("nan")])
def test_no_share(risk: float) -> None:
    with pytest.raises(UsageError, match=r"give the share of answers that may be wrong, above 0 and below 1, such as 0\.05"):
        find_threshold(np.linspace(0, 1, 100), np.ones(100, bool), risk)


def test_answers_that_are_all_wrong() -> None:
    with pytest.raises(UsageError, match="they can promise no risk at all"):
        find_threshold(np.linspace(0.1, 1, 200), np.zeros(200, bool), 0.05)
