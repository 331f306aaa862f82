"""The best candidate: by the validation rows alone."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, r2_score

from densefeat.errors import UsageError
from densefeat.labels.targets import Targets
from densefeat.probe.candidates import Candidate, conclude
from densefeat.probe.linear import Linear
from densefeat.probe.protocols import Fitted
from support.probes import single

VAL, TEST = single([0, 1, 2, 0, 1, 2]), single(np.arange(60) % 3)


def scores_of(targets: Targets, wrong: int) -> np.ndarray:
    """Of which the first ``wrong`` rows are."""
    shifted = (targets.values + (np.arange(len(targets)) < wrong)) % 3
    return np.eye(3, dtype=np.float32)[shifted]


def candidate(name: str, val_wrong: int, test_wrong: int, features: int = 4) -> Candidate:
    head = Linear(np.zeros((3, features), np.float32), np.zeros(3, np.float32))
    fitted = Fitted(head, {"C": 1.0}, [{"C": 1.0, "top1": 50.0}], scores_of(VAL, val_wrong))
    return Candidate(name, (name,), features, fitted, scores_of(TEST, test_wrong))


def test_chosen_on_validation_told_by_test() -> None:
    found = conclude([candidate("a", 2, 0), candidate("b", 1, 30), candidate("c", 3, 10)], VAL, TEST)
    assert (found.winner.name, found.outcomes[found.next].name) == ("b", "a")
    assert [outcome.name for outcome in found.outcomes] == ["a", "b", "c"]
    assert found.winner.test["top1"] == 100 * accuracy_score(TEST.values, scores_of(TEST, 30).argmax(1)) == 50
    low, high = found.winner.intervals["top1"]
    assert 35 < low < 50 < high < 65
    assert found.comparison is not None
    assert (found.comparison.metric, found.comparison.test, found.comparison.difference) == ("top1", "mcnemar", -50)
    assert found.comparison.p_value < 1e-6
    np.testing.assert_array_equal(found.scores, scores_of(TEST, 30))


def test_of_equals_the_smaller_then_the_first() -> None:
    some = [candidate("wide", 1, 0, 8), candidate("first", 1, 0, 4), candidate("second", 1, 0, 4), candidate("worse", 2, 0, 1)]
    found = conclude(some, VAL, TEST)
    assert (found.winner.name, found.outcomes[found.next].name) == ("first", "second")
    assert found.head is some[1].fitted.head


def test_one_by_one_gives_the_same_as_at_once() -> None:
    some = [candidate(f"{i}", i % 4, i) for i in range(8)]
    assert conclude(iter(some), VAL, TEST, 3).outcomes == conclude(some, VAL, TEST, 3).outcomes


def test_one_alone_and_none() -> None:
    found = conclude([candidate("a", 0, 1)], VAL, TEST)
    assert (found.best, found.next, found.comparison) == (0, None, None)
    with pytest.raises(UsageError, match="no candidates to choose from"):
        conclude([], VAL, TEST)


def test_without_test_rows() -> None:
    one = candidate("a", 1, 0)
    found = conclude([Candidate("a", ("a",), 4, one.fitted, None)] * 2, VAL, TEST.take(np.arange(0)))
    assert (found.winner.test, found.winner.intervals, found.comparison, found.scores) == ({}, {}, None, None)
    assert found.winner.val["top1"] == pytest.approx(100 * 5 / 6)


def test_numbers_that_are_all_alike_in_the_test_rows() -> None:
    """R² is not defined there: nothing is compared, the errors are told."""
    val, test = (Targets("regression", (), values) for values in (np.arange(5.0), np.ones(5)))
    head = Linear(np.zeros((1, 2), np.float32), np.zeros(1, np.float32), True)
    some = []
    for noise in (0.1, 0.2):
        guess = (np.arange(5) + noise).astype(np.float32)
        some.append(Candidate(f"{noise}", ("a",), 2, Fitted(head, {"l2": 1.0}, [], guess), np.ones(5, np.float32) + noise))
    found = conclude(some, val, test)
    assert found.comparison is None
    assert found.winner.test["r2"] is None
    assert found.winner.test["mae"] == pytest.approx(0.1)
    assert found.winner.val["r2"] == pytest.approx(r2_score(np.arange(5), np.arange(5) + 0.1), abs=1e-6)
