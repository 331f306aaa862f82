"""Ridge regression against scikit-learn's on standardised features."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from densefeat.errors import UsageError
from densefeat.labels.targets import Targets, Task
from densefeat.probing import ridge
from densefeat.probing.metrics import MAIN, compute_metrics
from densefeat.probing.protocols import draw_shots, fit_few_shot, fit_head
from support.toy_data import make_data, validation_mask


def encode_targets(targets: Targets) -> np.ndarray:
    if targets.task == "regression":
        return targets.values
    one_hot = targets.values if targets.task == "multi" else targets.values[:, None] == np.arange(len(targets.classes))
    return np.where(one_hot, 1.0, -1.0)


def fit_sklearn(x: np.ndarray, targets: Targets, l2: float, scale: np.ndarray) -> Ridge:
    x = x.astype(np.float64)
    return Ridge(alpha=l2, solver="svd").fit((x - scale.mean(0)) / scale.std(0), encode_targets(targets))


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
@pytest.mark.parametrize(("rows", "features"), [(300, 12), (60, 90)])
def test_against_scikit_learn(task: Task, rows: int, features: int) -> None:
    x, targets = make_data(task, rows, features)
    val = validation_mask(rows)
    scale = x[~val].astype(np.float64)
    metrics, scores, errors = {}, {}, {}
    for l2 in ridge.L2:
        scores[l2] = fit_sklearn(x[~val], targets.take(~val), l2, scale).predict((x[val] - scale.mean(0)) / scale.std(0))
        metrics[l2] = compute_metrics(targets.take(val), scores[l2])[MAIN[task]]
        errors[l2] = np.mean((scores[l2] - encode_targets(targets)[val]) ** 2)
    fit = fit_head("ridge", x.copy(), targets, val)
    assert {setting["l2"]: setting[MAIN[task]] for setting in fit.tried} == pytest.approx(metrics, rel=1e-4)
    l2 = fit.chosen["l2"]
    if task != "regression":
        assert {setting["l2"]: setting["squared_error"] for setting in fit.tried} == pytest.approx(errors, rel=1e-3)
    assert l2 == min(fit.tried, key=lambda setting: (-setting[MAIN[task]], setting.get("squared_error", 0)))["l2"]
    np.testing.assert_allclose(fit.val_scores, scores[l2], rtol=1e-4, atol=1e-4)
    final = fit_sklearn(x, targets, l2, scale).predict((x - scale.mean(0)) / scale.std(0))
    np.testing.assert_allclose(fit.head.scores(x), final, rtol=1e-3, atol=1e-4 * np.abs(final).max())


def test_constant_features_and_repeated_rows() -> None:
    x, targets = make_data("single", 100)
    x[:, 3], x[50:], targets.values[50:] = 5, x[:50], targets.values[:50]
    x[:50, 3] = x[50:, 3]
    fit = fit_head("ridge", x.copy(), targets, validation_mask(100))
    assert not fit.head.weight[:, 3].any()
    assert np.isfinite(fit.head.scores(x)).all()


def test_drawn_shots() -> None:
    targets = Targets("single", ("a", "b", "c"), np.array([0] * 10 + [1] * 3 + [2] * 10))
    candidates = np.arange(23) != 0
    rows = draw_shots(targets, candidates, 5, seed=0)
    assert (np.diff(rows) > 0).all()
    assert 0 not in rows
    assert np.bincount(targets.values[rows]).tolist() == [5, 3, 5]
    np.testing.assert_array_equal(rows, draw_shots(targets, candidates, 5, seed=0))
    assert not np.array_equal(rows, draw_shots(targets, candidates, 5, seed=1))


@pytest.mark.parametrize("shots", [1, 5, 10])
def test_few_shot_fits_see_no_other_rows(shots: int) -> None:
    x, targets = make_data("single")
    val, before = validation_mask(400), x.copy()
    fit = fit_few_shot(x, targets, val, shots, seed=2)
    np.testing.assert_array_equal(x, before)
    rows = draw_shots(targets, ~val, shots, 2)
    scale = x[rows].astype(np.float64)
    model = fit_sklearn(x[rows], targets.take(rows), fit.chosen["l2"], scale)
    np.testing.assert_allclose(fit.head.scores(x), model.predict((x - scale.mean(0)) / scale.std(0)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(fit.head.scores(x[val]), fit.val_scores, rtol=1e-3, atol=1e-3)


def test_impossible_shots() -> None:
    x, targets = make_data("multi")
    with pytest.raises(UsageError, match="few-shot fits of multi targets"):
        fit_few_shot(x, targets, validation_mask(400), 5, seed=0)
    with pytest.raises(UsageError, match="0 shots: give at least 1"):
        fit_few_shot(x, make_data("single")[1], validation_mask(400), 0, seed=0)
