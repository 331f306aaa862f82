"""Metrics against scikit-learn's, with ties, absent classes, and counted rows against rows written out."""

import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from densefeat.errors import UsageError
from densefeat.labels.targets import Targets, Task
from densefeat.probe.intervals import _draws
from densefeat.probe.metrics import compute_metrics, main_metric, resampled


def names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(classes))


def made(task: Task, rows: int = 300, classes: int = 8, ties: bool = False) -> tuple[Targets, np.ndarray]:
    """Scores that are right more often than by chance. The last class but one has no rows."""
    generator = np.random.default_rng(classes)
    scores = generator.normal(size=(rows, classes)).astype(np.float32)
    if task == "regression":
        y = generator.normal(size=rows) * 3 + 1000
        return Targets(task, (), y), (y + generator.normal(size=rows)).astype(np.float32)
    if task == "single":
        y = generator.integers(0, classes, rows)
        y[y == classes - 2] = 0
        scores[np.arange(rows), y] += 1.5
    else:
        y = generator.random((rows, classes)) < 0.3
        y[:, classes - 2] = False
        scores += 1.2 * y - 0.6
    return Targets(task, names(classes), y), np.round(scores) if ties else scores


def of_scikit_learn(targets: Targets, scores: np.ndarray) -> dict[str, float]:
    y, n = targets.values, len(targets)
    if targets.task == "regression":
        error = sk.mean_squared_error(y, scores)
        return {"r2": sk.r2_score(y, scores), "rmse": error**0.5, "mae": sk.mean_absolute_error(y, scores)}
    classes = np.arange(len(targets.classes))
    if targets.task == "single":
        shares = softmax(scores.astype(np.float64), axis=1)
        wanted, predicted = y[:, None] == classes, scores.argmax(1)
    else:
        shares, wanted, predicted = scores, y, None
    present = wanted.any(0)
    told = {"auroc": np.mean([sk.roc_auc_score(wanted[:, k], shares[:, k]) for k in classes[present]])}
    if targets.task == "multi":
        told["map"] = 100 * np.mean([sk.average_precision_score(wanted[:, k], scores[:, k]) for k in classes[present]])
        told["macro_f1"] = 100 * sk.f1_score(wanted[:, present], (scores > 0)[:, present], average="macro")
        return told
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told["balanced_accuracy"] = 100 * sk.balanced_accuracy_score(y, predicted)
    told["top1"] = 100 * sk.accuracy_score(y, predicted)
    told["macro_f1"] = 100 * sk.f1_score(y, predicted, labels=classes[present], average="macro")
    if len(classes) > 5:
        order = np.lexsort((np.broadcast_to(classes, scores.shape), -scores), axis=1)
        told["top5"] = 100 * (order[:, :5] == y[:, None]).any(1).sum() / n
    return told


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [3, 8, 50])
def test_against_scikit_learn(task: Task, ties: bool, classes: int) -> None:
    targets, scores = made(task, classes=classes, ties=ties)
    found = compute_metrics(targets, scores)
    assert found == pytest.approx(of_scikit_learn(targets, scores), rel=1e-9)
    assert list(found) == list(compute_metrics(targets, scores))


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_counted_rows_are_rows_written_out(task: Task) -> None:
    targets, scores = made(task, rows=60, ties=True)
    counts = _draws(60, 7, seed=3)
    found, main = resampled(targets, scores, counts), main_metric(targets, scores, counts)
    for r in range(7):
        rows = np.repeat(np.arange(60), counts[:, r])
        alone = compute_metrics(targets.take(rows), scores[rows])
        assert {name: values[r] for name, values in found.items()} == pytest.approx(alone, rel=1e-7)
        assert main[r] == pytest.approx(alone[{"single": "top1", "multi": "map", "regression": "r2"}[task]], rel=1e-7)


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("single", "multi"):
        targets, scores = made(task, ties=True)
        counts = _draws(300, 30, seed=3)
        whole = resampled(targets, scores, counts)
        monkeypatch.setattr("densefeat.probe.metrics._PIECE_VALUES", 100)
        monkeypatch.setattr("densefeat.probe.rows._PIECE_VALUES", 100)
        for name, values in resampled(targets, scores, counts).items():
            np.testing.assert_array_equal(values, whole[name])
        monkeypatch.undo()


def test_top5_gives_equal_scores_to_the_earlier_class() -> None:
    targets = Targets("single", names(7), np.array([0, 4, 5, 6]))
    found = compute_metrics(targets, np.zeros((4, 7), np.float32))
    assert (found["top1"], found["top5"]) == (25, 50)


def test_undefined_is_none() -> None:
    one_class = compute_metrics(Targets("single", names(2), np.zeros(3, np.int64)), np.eye(3, 2, dtype=np.float32))
    assert one_class["auroc"] is None
    assert one_class["top1"] == pytest.approx(200 / 3)
    nothing = compute_metrics(Targets("multi", names(2), np.zeros((3, 2), bool)), np.eye(3, 2, dtype=np.float32))
    assert nothing == {"macro_f1": None, "map": None, "auroc": None}
    constant = compute_metrics(Targets("regression", (), np.full(5, 0.1)), np.arange(5, dtype=np.float32))
    assert constant["r2"] is None
    assert constant["mae"] == pytest.approx(1.94)


def test_large_offsets_keep_r2() -> None:
    y = 1e6 + np.array([0.0, 1.0, 2.0, 3.0])
    assert compute_metrics(Targets("regression", (), y), y)["r2"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("task", "rows", "scores", "told"),
    [
        ("single", 3, np.zeros((3, 4)), r"shape \(3, 4\): single targets of this size take \(3, 2\)"),
        ("single", 3, np.zeros(3), r"take \(3, 2\)"),
        ("multi", 3, np.zeros((2, 2)), r"shape \(2, 2\)"),
        ("regression", 3, np.zeros((3, 1)), r"take \(3,\)"),
        ("single", 0, np.zeros((0, 2)), "no rows"),
        ("single", 3, np.full((3, 2), np.nan), "6 of 6 scores are NaN or infinite"),
        ("regression", 3, np.array([0, np.inf, 0]), "1 of 3 scores"),
    ],
)
def test_wrong_scores(task: Task, rows: int, scores: np.ndarray, told: str) -> None:
    values = {
        "single": np.zeros(rows, np.int64),
        "multi": np.zeros((rows, 2), bool),
        "regression": np.arange(rows, dtype=float),
    }
    targets = Targets(task, () if task == "regression" else names(2), values[task])
    with pytest.raises(UsageError, match=told):
        compute_metrics(targets, scores)
    if task != "single" or rows:
        with pytest.raises(UsageError, match=told):
            main_metric(targets, scores, np.ones((rows, 1), np.uint8))
