"""Answers as arrays and as columns of a table."""

from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from densefeat.certainty import Certainty, fit_certainty
from densefeat.errors import UsageError
from densefeat.labels import Targets, Task
from densefeat.probing.answers import check_promises, make_predictions, tabulate_answers

NAMES = ("a", "b", "c")
ROWS = np.linspace(0.01, 0.99, 99)
SURE = Certainty("single", 2.0, ROWS, ROWS > 0.3, np.sort(1 - ROWS))
SCORES = np.array([[4, 0, 0], [1, 1.5, 1]], np.float32)


def tabulate(task: Task, names: tuple[str, ...], scores: np.ndarray, *arguments: Any, **options: Any) -> dict[str, list[str]]:
    return tabulate_answers(make_predictions(task, names, scores, *arguments, **options), scores)


def test_classes() -> None:
    chances = softmax(SCORES.astype(np.float64) / 2, 1)
    made = make_predictions("single", NAMES, SCORES, SURE, np.array([0.5, 0.01]), risk=0.1, level=0.9)
    assert made.labels == ["a", "b"]
    np.testing.assert_allclose(made.probability, chances.max(1))
    assert made.answered is not None
    assert made.answered.tolist() == (chances.max(1) >= SURE.find_threshold(0.1).threshold).tolist()
    assert made.sets == [["a", "b", "c"], ["a", "b", "c"]]  # 1 - p up to 0.9 is allowed
    columns = tabulate_answers(made, SCORES)
    assert list(columns) == ["predicted", "probability", "ood", "answered", "set"]
    assert columns["probability"] == [f"{chance:.6g}" for chance in chances.max(1)]
    assert (columns["ood"], columns["set"]) == (["0.5", "0.01"], ["a|b|c", "a|b|c"])
    assert set(columns["answered"]) <= {"yes", "no"}


def test_without_certainty() -> None:
    columns = tabulate("single", NAMES, SCORES)
    assert columns == {"predicted": ["a", "b"], "probability": [f"{chance:.6g}" for chance in softmax(SCORES, 1).max(1)]}
    for options in ({"risk": 0.1}, {"level": 0.9}):
        with pytest.raises(UsageError, match=r"cannot be promised: this model keeps no validation rows; give a probe"):
            make_predictions("single", NAMES, SCORES, **options)


def test_several_labels() -> None:
    wanted = np.random.default_rng(0).random((200, 3)) < [0.9, 0.5, 0.1]
    scores = np.where(wanted, 3, -3).astype(np.float32) + np.random.default_rng(1).standard_normal((200, 3)).astype(np.float32)
    certainty = fit_certainty(Targets("multi", NAMES, wanted), scores)
    columns = tabulate("multi", NAMES, np.array([[3, 2, -4], [-3, -3, -3]], np.float32), certainty, level=0.9)
    assert columns["predicted"] == ["a|b", "|"]
    assert columns["set"] == ["a|b", "|"]
    first, second = map(float, columns["probability"][0].split("|"))
    assert first > second > 0.5
    assert columns["probability"][1] == ""


def test_numbers() -> None:
    certainty = Certainty("regression", 1.0, np.empty(0), np.empty(0, bool), np.arange(1.0, 20))
    columns = tabulate("regression", (), np.array([5, -1.5], np.float32), certainty, level=0.95)
    assert columns == {"predicted": ["5", "-1.5"], "probability": ["", ""], "low": ["-14", "-20.5"], "high": ["24", "17.5"]}
    with pytest.raises(UsageError, match="a risk of a regression: numbers are not right or wrong"):
        check_promises(certainty, 0.1, None)
    with pytest.raises(UsageError, match="19 validation rows cannot promise a coverage of 99 %: that takes 99"):
        check_promises(certainty, None, 0.99)


def test_no_rows() -> None:
    empty = np.empty((0, 3), np.float32)
    assert tabulate("single", NAMES, empty, SURE, np.empty(0), 0.1, 0.9) == {
        name: [] for name in ("predicted", "probability", "ood", "answered", "set")
    }
