"""Logistic regression against scikit-learn's, fit by fit and as a sweep."""

import tracemalloc
from functools import lru_cache

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from densefeat.labels.targets import Targets
from densefeat.probing import logreg
from densefeat.probing.logreg import _LogLoss, _rotate_to_axes, _sweep
from densefeat.probing.protocols import fit_head
from support.toy_data import make_data, validation_mask


def fit_sklearn(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(x.astype(np.float64), y)


def assert_same_logits(own: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    """Logits, up to what is added to all of a row."""
    own, theirs = (values - values.mean(1, keepdims=True) for values in (own.astype(np.float64), theirs))
    assert np.abs(own - theirs).max() < tolerance * np.abs(theirs).max()


@pytest.mark.parametrize(("rows", "features", "classes"), [(400, 12, 4), (400, 12, 2), (60, 90, 3), (50, 50, 3)])
def test_every_fit_of_the_sweep(rows: int, features: int, classes: int) -> None:
    x, targets = make_data("single", rows, features, classes)
    axes = _rotate_to_axes(x.copy())
    loss = _LogLoss(axes.x, axes.variance, targets)
    for place, (c, weights) in enumerate(_sweep(loss, logreg.C)):
        if place % 4 == 0 and c < 1e4:
            logits = fit_sklearn(x, targets.values, c).decision_function(x)
            theirs = logits if classes > 2 else np.stack([-logits, logits], 1) / 2
            assert_same_logits(loss.linear(weights).scores(axes.x), theirs, 0.004)
    assert place == 44


@pytest.mark.parametrize("standardize", [False, True])
def test_tight_fits_agree_in_coefficients(monkeypatch: pytest.MonkeyPatch, standardize: bool) -> None:
    monkeypatch.setattr(logreg, "_TOLERANCE", 1e-6)
    x, targets = make_data("single")
    val = validation_mask(400)
    fit = fit_head("logreg", x.copy(), targets, val, standardize=standardize)
    mean, deviation = x[~val].mean(0), x[~val].std(0) if standardize else np.ones(12)
    theirs = fit_sklearn((x - mean) / deviation, targets.values, fit.chosen["C"])
    weight = fit.head.weight - fit.head.weight.mean(0)
    np.testing.assert_allclose(weight, theirs.coef_ / deviation, atol=2e-4 * np.abs(theirs.coef_ / deviation).max())
    assert_same_logits(fit.head.scores(x), theirs.decision_function((x - mean) / deviation), 2e-4)


@lru_cache(maxsize=1)
def sklearn_sweep(rows: int, features: int, classes: int, seed: int) -> tuple[dict[float, float], dict[float, float]]:
    """Accuracy and smoothed log loss on the validation rows, for each C."""
    x, targets = make_data("single", rows, features, classes, seed)
    val, accuracy, losses = validation_mask(rows), {}, {}
    for c in logreg.C:
        model = fit_sklearn(x[~val], targets.values[~val], min(c, 3e4))  # beyond, it takes very long
        accuracy[c] = 100 * model.score(x[val].astype(np.float64), targets.values[val])
        logs = model.predict_log_proba(x[val].astype(np.float64))
        losses[c] = -(0.9 * logs[np.arange(len(logs)), targets.values[val]] + 0.1 * logs.mean(1)).mean()
    return accuracy, losses


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize(("rows", "features", "classes"), [(500, 10, 5), (80, 120, 3), (300, 8, 2)])
def test_choice_of_the_full_sweep(
    rows: int, features: int, classes: int, seed: int, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logreg, "FEW", 1000 if few else 1)
    x, targets = make_data("single", rows, features, classes, seed)
    val = validation_mask(rows)
    fit = fit_head("logreg", x.copy(), targets, val)
    accuracy, losses = sklearn_sweep(rows, features, classes, seed)
    best = max(accuracy.values())
    if few:
        least = min(losses.values())
    else:
        least = min(losses[c] for c, value in accuracy.items() if value == best)
        assert accuracy[fit.chosen["C"]] == best
    assert losses[fit.chosen["C"]] == pytest.approx(least, rel=1e-3)
    losses_by_c = {setting["C"]: setting["log_loss"] for setting in fit.tried}
    assert losses_by_c[fit.chosen["C"]] == pytest.approx(least, rel=1e-2)
    assert [setting["C"] for setting in fit.tried] == list(logreg.C)
    assert 100 * (fit.val_scores.argmax(1) == targets.values[val]).mean() == pytest.approx(accuracy[fit.chosen["C"]])
    assert sum(abs(setting["top1"] - accuracy[setting["C"]]) > 1e-9 for setting in fit.tried) <= 3


def test_several_labels() -> None:
    x, targets = make_data("multi", rows=300, features=10)
    val = validation_mask(300)
    fit = fit_head("logreg", x.copy(), targets, val)
    rated = {}
    for c in logreg.C[8:36:3]:
        logits = [fit_sklearn(x[~val], y, c).decision_function(x[val]) for y in targets.values[~val].T]
        rated[c] = 100 * np.mean([average_precision_score(y, z) for y, z in zip(targets.values[val].T, logits, strict=True)])
    losses_by_c = {setting["C"]: setting["map"] for setting in fit.tried}
    assert {c: losses_by_c[c] for c in rated} == pytest.approx(rated, abs=0.05)
    final = [fit_sklearn(x, y, fit.chosen["C"]).decision_function(x) for y in targets.values.T]
    np.testing.assert_allclose(fit.head.scores(x), np.stack(final, 1), atol=0.01 * np.abs(final).max())


def test_classes_that_one_part_lacks() -> None:
    x, targets = make_data("single", classes=5)
    val = validation_mask(400)
    values = targets.values.copy()
    values[~val & (values == 3)] = 0
    values[val & (values == 1)] = 2
    values[values == 4] = 0
    fit = fit_head("logreg", x.copy(), Targets("single", targets.classes, values), val)
    assert fit.val_scores[:, 3].max() < fit.val_scores[:, [0, 1, 2]].min()
    final = fit_sklearn(x, values, fit.chosen["C"])
    assert_same_logits(fit.head.scores(x)[:, :4], final.decision_function(x), 0.004)
    assert (fit.head.scores(x)[:, 4] == logreg.NEVER).all()


def test_labels_that_do_not_vary() -> None:
    x, targets = make_data("multi")
    values = targets.values.copy()
    values[:, 1], values[:, 2] = False, True
    fit = fit_head("logreg", x.copy(), Targets("multi", targets.classes, values), validation_mask(400))
    assert (fit.head.scores(x)[:, 1] == logreg.NEVER).all()
    assert (fit.head.scores(x)[:, 2] == -logreg.NEVER).all()


@pytest.mark.parametrize(("rows", "features"), [(200, 12), (40, 60)])
def test_constant_and_repeated_features_and_rows(rows: int, features: int) -> None:
    x, targets = make_data("single", rows, features)
    val = validation_mask(rows)
    val[rows // 2 :] = val[: rows // 2]
    x[rows // 2 :], targets.values[rows // 2 :] = x[: rows // 2], targets.values[: rows // 2]
    plain = fit_head("logreg", x.copy(), targets, val)
    wide = np.concatenate([x, np.full((rows, 2), 7, np.float32), x], axis=1)
    fit = fit_head("logreg", wide.copy(), targets, val)
    assert np.abs(fit.head.weight[:, features : features + 2]).max() < 1e-4
    assert all(np.isfinite(values).all() for values in (fit.head.weight, fit.head.bias, plain.head.weight))
    np.testing.assert_allclose(fit.head.weight[:, :features], fit.head.weight[:, -features:], atol=1e-4)


def test_the_same_bits_again() -> None:
    x, targets = make_data("single")
    first, second = (fit_head("logreg", x.copy(), targets, validation_mask(400)) for _ in range(2))
    assert first.tried == second.tried
    np.testing.assert_array_equal(first.head.weight, second.head.weight)
    np.testing.assert_array_equal(first.val_scores, second.val_scores)


def test_memory_beside_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logreg, "C", logreg.C[20:23])  # memory does not depend on how many are tried
    x, targets = make_data("single", rows=60_000, features=48)
    val = validation_mask(60_000)
    tracemalloc.start()
    fit_head("logreg", x, targets, val)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes + 2**24  # numpy's alone: pieces of 8 MB


def test_a_path_of_quadratics() -> None:
    """The minimum is known: (A + penalty)^-1 b."""
    generator = np.random.default_rng(0)
    root = generator.normal(size=(30, 30))
    matrix, b = root @ root.T / 30, generator.normal(size=30)
    curvature, weights = logreg._Curvature(np.diag(matrix)[None].copy()), np.zeros((1, 30))
    for strength in (10.0, 1.0, 0.1, 0.01):
        penalty = np.full(30, strength)
        weights = logreg._minimize(lambda w: w @ matrix - b, penalty, weights, curvature, np.ones(30), 1e-9)
        np.testing.assert_allclose(weights[0], np.linalg.solve(matrix + strength * np.eye(30), b), rtol=1e-6, atol=1e-8)
