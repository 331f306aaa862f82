"""Conformal sets: coverage in simulations, quantiles by hand, and no empty sets."""

import numpy as np
import pytest
from scipy.special import softmax

from densefeat.certainty.sets import find_quantile, measure_nonconformity, select_classes
from densefeat.errors import UsageError

R = np.random.default_rng(0)


def draw(rows: int) -> tuple[np.ndarray, np.ndarray]:
    codes = R.integers(0, 5, rows)
    return softmax(R.standard_normal((rows, 5)) + 1.2 * np.eye(5)[codes], 1), codes


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_coverage(level: float) -> None:
    """The mean over draws is the level or more, by less than 1 / (rows + 1) and chance."""
    held = []
    for _ in range(300):
        chances, codes = draw(99)
        quantile = find_quantile(np.sort(measure_nonconformity("single", chances, codes)), level)
        new, truth = draw(100)
        held.append((1 - new <= quantile)[np.arange(100), truth].mean())
    assert level - 0.012 < np.mean(held) < level + 0.022


def test_sets_of_classes() -> None:
    chances = np.array([[0.7, 0.2, 0.1], [0.34, 0.33, 0.33]])
    assert select_classes("single", chances, 0.8).tolist() == [[True, True, False], [True, True, True]]
    assert select_classes("single", chances, 0.1).tolist() == [[True, False, False], [True, False, False]]  # never empty
    assert select_classes("multi", chances, 0.1).tolist() == [[False] * 3] * 2


def test_scores_of_rows() -> None:
    chances, labels = np.array([[0.9, 0.2], [0.4, 0.7]]), np.array([[True, True], [False, False]])
    np.testing.assert_allclose(measure_nonconformity("multi", chances, labels), [0.8, 0])
    np.testing.assert_allclose(measure_nonconformity("single", chances, np.array([1, 1])), [0.8, 0.3])
    np.testing.assert_allclose(measure_nonconformity("regression", np.array([1.0, -2]), np.array([3.0, -2.5])), [2, 0.5])


@pytest.mark.parametrize(
    ("rows", "level", "rank"), [(19, 0.95, 19), (20, 0.95, 20), (99, 0.9, 90), (9, 0.5, 5), (100, 0.9, 91)]
)
def test_quantiles(rows: int, level: float, rank: int) -> None:
    assert find_quantile(np.arange(1.0, rows + 1), level) == rank


@pytest.mark.parametrize(
    ("rows", "level", "match"),
    [
        (18, 0.95, "18 validation rows cannot promise a coverage of 95 %: that takes 19 at least"),
        (8, 0.9, "that takes 9 at least"),
        (98, 0.99, "that takes 99 at least"),
        (50, 1.0, r"a level of 1: give the share of sets that should hold the truth, such as 0\.95"),
        (50, 95, "a level of 95: give the share"),
    ],
)
def test_too_few_rows_and_no_shares(rows: int, level: float, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        find_quantile(np.arange(float(rows)), level)
