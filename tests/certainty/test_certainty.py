"""Certainty as a whole: of classes, of several labels, of numbers."""

import numpy as np
import pytest

from densefeat.certainty import MAX_ROWS, fit_certainty, fit_temperature
from densefeat.errors import UsageError
from densefeat.labels import Targets

R = np.random.default_rng(0)
NAMES = ("a", "b", "c")


def draw(rows: int) -> tuple[Targets, np.ndarray]:
    codes = R.integers(0, 3, rows)
    return Targets("single", NAMES, codes), (3 * (R.standard_normal((rows, 3)) + 2 * np.eye(3)[codes])).astype(np.float32)


def test_classes() -> None:
    targets, scores = draw(500)
    certainty = fit_certainty(targets, scores)
    assert 1.2 < certainty.temperature < 6
    assert (np.diff(certainty.confidence) >= 0).all()
    assert certainty.right.mean() == pytest.approx((scores.argmax(1) == targets.values).mean())
    new, found = draw(2000)
    given = certainty.choose_answers(found, 0.1)
    assert given.mean() > 0.5
    assert (found.argmax(1) != new.values)[given].mean() < 0.12
    sets = certainty.choose_sets(found, 0.95)
    assert sets[np.arange(2000), new.values].mean() > 0.92
    assert certainty.probabilities(found).max(1) == pytest.approx(certainty.confidences(found))


def test_a_class_without_training_rows_does_not_move_the_temperature() -> None:
    """Its score is -10,000 everywhere; a validation row that has it could only be explained by an endless temperature."""
    targets, scores = draw(300)
    expected = fit_certainty(targets, scores).temperature
    wide = np.concatenate([scores, np.full((300, 1), -1e4, np.float32)], axis=1)
    wide = np.concatenate([wide, wide[:5]])
    codes = np.append(targets.values, [3] * 5)
    certainty = fit_certainty(Targets("single", (*NAMES, "d"), codes), wide, Targets("single", (*NAMES, "d"), np.arange(3)))
    assert certainty.temperature == pytest.approx(expected)
    assert (certainty.nonconformity > 1 - 1e-9).sum() == 5  # but these rows count as errors
    assert (~certainty.right).sum() == 5 + (scores.argmax(1) != targets.values).sum()


def test_a_class_without_training_rows_stays_improbable() -> None:
    """Even where all validation rows are wrong, so that the classes that were learnt become equally probable."""
    scores = np.array([[2, 1, -1e4], [1, 3, -1e4], [0, 1, -1e4]], np.float32)
    certainty = fit_certainty(Targets("single", NAMES, np.array([1, 0, 0])), scores, Targets("single", NAMES, np.arange(2)))
    assert certainty.probabilities(scores) == pytest.approx(np.array([[0.5, 0.5, 0.0]] * 3), abs=1e-3)


def test_votes_keep_their_shares() -> None:
    """Calibrated shares of votes, but now and then a label without a vote: the log loss alone would flatten all of them."""
    shares = R.dirichlet([0.3] * 3, 1000)
    codes = np.array([R.choice(3, p=row) for row in shares])
    scores = np.log(np.where(shares < 0.05, 1e-9, shares)).astype(np.float32)
    targets = Targets("single", NAMES, codes)
    assert fit_temperature(targets, scores) > 1.5
    assert fit_certainty(targets, scores).temperature == 1.0


def test_several_labels() -> None:
    scores = (2 * R.standard_normal((800, 3))).astype(np.float32)
    targets = Targets("multi", NAMES, R.random((800, 3)) < 1 / (1 + np.exp(-scores)))
    certainty = fit_certainty(targets.take(np.arange(400)), 4 * scores[:400])
    assert certainty.temperature == pytest.approx(4, rel=0.25)
    chances = certainty.probabilities(4 * scores)
    np.testing.assert_allclose(certainty.confidences(4 * scores), np.maximum(chances, 1 - chances).prod(1))
    members, wanted = certainty.choose_sets(4 * scores[400:], 0.9), targets.values[400:]
    assert (members | ~wanted).all(1).mean() == pytest.approx(0.9, abs=0.05)
    train = Targets("multi", NAMES, np.array([[True, False, True], [False, True, True]]))
    fixed = fit_certainty(targets, np.concatenate([scores[:, :2], np.full((800, 1), 1e4)], axis=1), train)
    assert fixed.temperature == pytest.approx(1, rel=0.25)


def test_numbers() -> None:
    values = R.standard_normal(400)
    scores = (values + R.standard_normal(400)).astype(np.float32)
    certainty = fit_certainty(Targets("regression", (), values[:99]), scores[:99])
    width = certainty.find_quantile(0.9)
    assert width == np.sort(np.abs(scores[:99].astype(np.float64) - values[:99]))[89]
    assert (np.abs(scores[99:] - values[99:]) <= width).mean() == pytest.approx(0.9, abs=0.06)
    for call in (lambda: certainty.find_threshold(0.1), lambda: certainty.probabilities(scores)):
        with pytest.raises(UsageError, match="of a regression: numbers are not right or wrong; ask for intervals"):
            call()


def test_many_rows_are_drawn_from() -> None:
    targets, scores = draw(MAX_ROWS + 1000)
    certainty = fit_certainty(targets, scores, seed=1)
    assert len(certainty.nonconformity) == len(certainty.confidence) == len(certainty.right) == MAX_ROWS
    np.testing.assert_array_equal(certainty.confidence, fit_certainty(targets, scores, seed=1).confidence)
