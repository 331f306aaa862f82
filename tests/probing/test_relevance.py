"""The group lasso: its minimum as scikit-learn finds it, and the same whatever it starts from."""

import numpy as np
import pytest
from sklearn.linear_model import MultiTaskLasso

from densefeat.errors import UsageError
from densefeat.probing import relevance
from densefeat.probing.relevance import find_largest_penalty, fit_group_lasso, measure_moments, measure_relevance


def make_problem(rows: int = 60, features: int = 90, targets: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features, some of which are constant or repeated."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 10)) @ generator.standard_normal((10, features))
    x += 0.5 * generator.standard_normal((rows, features)) + 3
    x[:, 5], x[:, 7] = 0.25, x[:, 8]
    y = x[:, :targets] - x[:, targets : 2 * targets] + generator.standard_normal((rows, targets)) + 7
    return x.astype(np.float32), y


def objective(x: np.ndarray, y: np.ndarray, weights: np.ndarray, penalty: float) -> float:
    x, y = x - x.mean(0, dtype=np.float64), y - y.mean(0)
    return float(np.square(y - x @ weights).sum() / (2 * len(x)) + penalty * np.linalg.norm(weights, axis=1).sum())


@pytest.mark.parametrize("share", [0.9, 0.3, 0.05, 0.01])
@pytest.mark.parametrize("rows", [60, 300])
def test_minimum_as_by_scikit_learn(rows: int, share: float) -> None:
    x, y = make_problem(rows)
    moments = measure_moments(x, y, np.arange(rows))
    penalty = share * find_largest_penalty(moments)
    weights = fit_group_lasso(moments, penalty)
    found = MultiTaskLasso(penalty, max_iter=200_000, tol=1e-8).fit(x.astype(np.float64), y)
    expected = found.coef_.T
    nothing = objective(x, y, np.zeros_like(weights), penalty)
    assert objective(x, y, weights, penalty) - objective(x, y, expected, penalty) <= 1e-5 * nothing
    own, others = measure_relevance(weights), np.linalg.norm(expected, axis=1)
    own[7], others[7] = own[7] + own[8], others[7] + others[8]  # two equal features share their weight in any way
    own[8] = others[8] = 0
    np.testing.assert_allclose(own, others, atol=0.02 * others.max())
    assert own[5] == 0


def test_largest_penalty() -> None:
    moments = measure_moments(*make_problem(), np.arange(60))
    largest = find_largest_penalty(moments)
    assert not fit_group_lasso(moments, largest).any()
    assert np.count_nonzero(measure_relevance(fit_group_lasso(moments, 0.999 * largest, tolerance=1e-9))) == 1


def test_start_changes_the_work_alone() -> None:
    moments = measure_moments(*make_problem(300), np.arange(300))
    penalty = 0.05 * find_largest_penalty(moments)
    far = np.random.default_rng(1).standard_normal((90, 3))
    first, second = (fit_group_lasso(moments, penalty, start, 1e-9) for start in (None, far))
    np.testing.assert_allclose(np.delete(first, (7, 8), 0), np.delete(second, (7, 8), 0), atol=1e-3 * np.abs(first).max())
    np.testing.assert_array_equal(first, fit_group_lasso(moments, penalty, None, 1e-9))


@pytest.mark.parametrize("values", [2**20, 200])
def test_moments_of_repeated_rows(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relevance, "_PIECE_VALUES", values)
    x, y = make_problem()
    rows = np.sort(np.random.default_rng(1).integers(0, 60, 100))
    moments = measure_moments(x, y, rows)
    centred, targets = x[rows] - x[rows].mean(0, dtype=np.float64), y[rows] - y[rows].mean(0)
    assert moments.rows == 100
    np.testing.assert_allclose(moments.gram, centred.T @ centred, atol=1e-9)
    np.testing.assert_allclose(moments.cross, centred.T @ targets, atol=1e-9)
    assert moments.square == pytest.approx(np.square(targets).sum())


def test_nothing_to_explain() -> None:
    x, y = make_problem()
    moments = measure_moments(np.ones_like(x), y, np.arange(60))
    assert not fit_group_lasso(moments, 0.0).any()


@pytest.mark.parametrize("penalty", [0.0, -1.0, np.nan])
def test_penalties_that_are_not_positive(penalty: float) -> None:
    with pytest.raises(UsageError, match=f"penalty {penalty}: it must be positive"):
        fit_group_lasso(measure_moments(*make_problem(), np.arange(60)), penalty)


def test_a_fit_that_does_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relevance, "_MAX_STEPS", 20)
    monkeypatch.setattr(relevance, "_MAX_ROUNDS", 2)
    moments = measure_moments(*make_problem(), np.arange(60))
    with pytest.raises(UsageError, match=r"penalty .* is too small for these features: the fit has not converged"):
        fit_group_lasso(moments, 1e-6 * find_largest_penalty(moments))
