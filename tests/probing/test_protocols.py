"""The code that all protocols share: the order of rows, wrong input, descriptions."""

import hashlib
import json

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.labels.targets import Targets, Task
from densefeat.probing.matrices import moments, move_validation_last
from densefeat.probing.metrics import MAIN, compute_metrics
from densefeat.probing.protocols import _PROTOCOLS, GRIDS, describe_protocol, fit_head
from support.toy_data import make_data, validation_mask

SENSIBLE = [(protocol, task) for protocol in _PROTOCOLS for task in MAIN if (protocol, task) != ("logreg", "regression")]


@pytest.mark.parametrize(("protocol", "task"), SENSIBLE)
def test_validation_scores_are_in_the_rows_order(protocol: str, task: Task) -> None:
    x, targets = make_data(task)
    val = validation_mask(400)
    done: list[int] = []
    fit = fit_head(protocol, x.copy(), targets, val, advance=done.append)
    best = compute_metrics(targets.take(val), fit.val_scores)[MAIN[task]]
    (chosen,) = (setting for setting in fit.tried if fit.chosen.items() <= setting.items())
    assert best == pytest.approx(chosen[MAIN[task]])
    assert best > {"single": 60, "multi": 60, "regression": 0.3}[task]
    main = -np.inf if protocol == "logreg" else max(setting[MAIN[task]] for setting in fit.tried)  # of few rows the loss
    equals = [setting for setting in fit.tried if setting[MAIN[task]] >= main]
    assert chosen == min(equals, key=lambda setting: setting.get("squared_error" if protocol == "ridge" else "log_loss", 0))
    assert sum(done) == len(GRIDS[protocol])
    assert fit.head.scores(x).shape == ((400,) if task == "regression" else (400, 4))


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.99])
def test_move_validation_last(share: float) -> None:
    x = np.arange(600, dtype=np.float32).reshape(200, 3)
    val, before = validation_mask(200, share), x.copy()
    order = move_validation_last(x, val)
    np.testing.assert_array_equal(x, before[order])
    np.testing.assert_array_equal(val[order], np.sort(val))


def test_moments_of_large_offsets() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32) * [1, 0.01, 100, 0] + [1e3, 10, 0, 0.1]
    mean, deviation = moments(x.astype(np.float32))
    exact = x.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-9)
    np.testing.assert_allclose(deviation[:3], exact.std(0)[:3], rtol=1e-9)
    assert deviation[3] == 0


@pytest.mark.parametrize(
    ("protocol", "task", "options", "match"),
    [
        ("svm", "single", {}, "protocol 'svm': one of logreg, knn, ridge"),
        ("logreg", "regression", {}, "use ridge or knn"),
        ("knn", "single", {"standardize": True}, "leave out standardize"),
    ],
)
def test_impossible_combinations(protocol: str, task: Task, options: dict[str, bool], match: str) -> None:
    x, targets = make_data(task)
    with pytest.raises(UsageError, match=match):
        fit_head(protocol, x, targets, validation_mask(400), **options)


@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_bad_rows(protocol: str) -> None:
    x, targets = make_data("single")
    val = validation_mask(400)
    bad = x.copy()
    bad[[7, 9], [0, 3]] = np.nan, np.inf
    one_class = Targets("single", targets.classes, np.where(val, targets.values, 2))
    cases = [
        (bad, targets, val, "2 of 400 rows of features have NaN or infinite values, row 7 first"),
        (x.astype(np.float64), targets, val, "type float64 and shape"),
        (x[:, ::2], targets, val, "C-contiguous"),
        (x[:, :0].copy(), targets, val, r"shape \(400, 0\)"),
        (x[:300].copy(), targets, val, "300 rows of features, 400 targets"),
        (x, targets, val.astype(int), "mask of 400 int64"),
        (x, targets, np.zeros(400, bool), "0 of 400 rows are for validation"),
        (x, targets, np.ones(400, bool), "400 of 400 rows are for validation"),
        (x, one_class, val, "all 300 training rows have the same class"),
    ]
    for features, labels, marks, match in cases:
        with pytest.raises(UsageError, match=match):
            fit_head(protocol, features, labels, marks)


def test_targets_that_do_not_vary() -> None:
    x, targets = make_data("multi")
    val = validation_mask(400)
    with pytest.raises(UsageError, match="all 300 training rows have the same labels"):
        fit_head("ridge", x.copy(), Targets("multi", targets.classes, np.ones((400, 4), bool)), val)
    none_held_out = targets.values & ~val[:, None]
    with pytest.raises(UsageError, match="map is undefined on the 100 validation rows: no class has a positive row"):
        fit_head("logreg", x.copy(), Targets("multi", targets.classes, none_held_out), val)
    numbers = make_data("regression")[1].values
    with pytest.raises(UsageError, match="r2 is undefined on the 100 validation rows: all have the same target"):
        fit_head("knn", x.copy(), Targets("regression", (), np.where(val, 1.0, numbers)), val)
    with pytest.raises(UsageError, match="all 300 training rows have the same number"):
        fit_head("ridge", x.copy(), Targets("regression", (), np.where(val, numbers, 1.0)), val)


@pytest.mark.parametrize(("protocol", "task"), SENSIBLE)
def test_descriptions(protocol: str, task: Task) -> None:
    match = describe_protocol(protocol, task)
    assert json.loads(json.dumps(match)) == match
    assert match["name"] == protocol
    of_equals = "the first" if task == "regression" else "mean squared error" if protocol == "ridge" else "log loss"
    assert match["criterion"].startswith(f"{MAIN[task]} on the validation rows; of equals ")
    assert of_equals in match["criterion"]
    assert tuple(*match["grid"].values()) == GRIDS[protocol]
    assert match["sources"]
    assert len(GRIDS["logreg"]) == 45
    assert (GRIDS["logreg"][0], GRIDS["logreg"][-1]) == (1e-6, 1e5)


def test_descriptions_are_those_of_earlier_versions() -> None:
    """They identify finished probes in results.json: with another wording, the same command would find another probe."""
    descriptions = [describe_protocol(protocol, task) for protocol, task in SENSIBLE]
    digest = hashlib.sha256(json.dumps(descriptions, sort_keys=True).encode()).hexdigest()
    assert digest == "fbdbadf0c30b5bbc56ab3cd8a134c2cc5b6e13f4331af83b071a86502df1848a"
