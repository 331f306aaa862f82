"""Metrics and their intervals, against scikit-learn and scipy."""

import time
import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax
from sklearn import metrics as sk

from densefeat.errors import UsageError
from densefeat.labels.targets import Targets, Task
from densefeat.probing import metrics
from densefeat.probing.metrics import (
    PairedComparison,
    _draw_pieces,
    _resample_metrics,
    bootstrap,
    compare_predictions,
    compute_metrics,
    draw_resamples,
    main_metric,
)


def names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(classes))


def random_predictions(task: Task, rows: int = 300, classes: int = 8, ties: bool = False) -> tuple[Targets, np.ndarray]:
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


def compute_with_scikit_learn(targets: Targets, scores: np.ndarray) -> dict[str, float]:
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
    match = {"auroc": np.mean([sk.roc_auc_score(wanted[:, k], shares[:, k]) for k in classes[present]])}
    if targets.task == "multi":
        match["map"] = 100 * np.mean([sk.average_precision_score(wanted[:, k], scores[:, k]) for k in classes[present]])
        match["macro_f1"] = 100 * sk.f1_score(wanted[:, present], (scores > 0)[:, present], average="macro")
        return match
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match["balanced_accuracy"] = 100 * sk.balanced_accuracy_score(y, predicted)
    match["top1"] = 100 * sk.accuracy_score(y, predicted)
    match["macro_f1"] = 100 * sk.f1_score(y, predicted, labels=classes[present], average="macro")
    if len(classes) > 5:
        order = np.lexsort((np.broadcast_to(classes, scores.shape), -scores), axis=1)
        match["top5"] = 100 * (order[:, :5] == y[:, None]).any(1).sum() / n
    return match


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [3, 8, 50])
def test_against_scikit_learn(task: Task, ties: bool, classes: int) -> None:
    targets, scores = random_predictions(task, classes=classes, ties=ties)
    measured = compute_metrics(targets, scores)
    assert measured == pytest.approx(compute_with_scikit_learn(targets, scores), rel=1e-9)
    assert list(measured) == list(compute_metrics(targets, scores))


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_counts_equal_repeated_rows(task: Task) -> None:
    targets, scores = random_predictions(task, rows=60, ties=True)
    counts = draw_resamples(60, 7, seed=3)
    measured, main = _resample_metrics(targets, scores, counts), main_metric(targets, scores, counts)
    for r in range(7):
        rows = np.repeat(np.arange(60), counts[:, r])
        alone = compute_metrics(targets.take(rows), scores[rows])
        assert {name: values[r] for name, values in measured.items()} == pytest.approx(alone, rel=1e-7)
        assert main[r] == pytest.approx(alone[{"single": "top1", "multi": "map", "regression": "r2"}[task]], rel=1e-7)


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("single", "multi"):
        targets, scores = random_predictions(task, ties=True)
        counts = draw_resamples(300, 30, seed=3)
        whole = _resample_metrics(targets, scores, counts)
        monkeypatch.setattr("densefeat.probing.metrics._PIECE_VALUES", 100)
        monkeypatch.setattr("densefeat.probing.matrices._PIECE_VALUES", 100)
        for name, values in _resample_metrics(targets, scores, counts).items():
            np.testing.assert_array_equal(values, whole[name])
        monkeypatch.undo()


def test_top5_gives_equal_scores_to_the_earlier_class() -> None:
    targets = Targets("single", names(7), np.array([0, 4, 5, 6]))
    measured = compute_metrics(targets, np.zeros((4, 7), np.float32))
    assert (measured["top1"], measured["top5"]) == (25, 50)


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
    ("task", "rows", "scores", "match"),
    [
        ("single", 3, np.zeros((3, 4)), r"shape \(3, 4\): for these single targets it must be \(3, 2\)"),
        ("single", 3, np.zeros(3), r"must be \(3, 2\)"),
        ("multi", 3, np.zeros((2, 2)), r"shape \(2, 2\)"),
        ("regression", 3, np.zeros((3, 1)), r"must be \(3,\)"),
        ("single", 0, np.zeros((0, 2)), "no rows"),
        ("single", 3, np.full((3, 2), np.nan), "6 of 6 scores are NaN or infinite"),
        ("regression", 3, np.array([0, np.inf, 0]), "1 of 3 scores"),
    ],
)
def test_wrong_scores(task: Task, rows: int, scores: np.ndarray, match: str) -> None:
    values = {
        "single": np.zeros(rows, np.int64),
        "multi": np.zeros((rows, 2), bool),
        "regression": np.arange(rows, dtype=float),
    }
    targets = Targets(task, () if task == "regression" else names(2), values[task])
    with pytest.raises(UsageError, match=match):
        compute_metrics(targets, scores)
    if task != "single" or rows:
        with pytest.raises(UsageError, match=match):
            main_metric(targets, scores, np.ones((rows, 1), np.uint8))


def noisy_scores(rows: int = 400, classes: int = 6, seed: int = 0, lift: float = 1.0) -> tuple[Targets, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = np.random.default_rng(99).integers(0, classes, rows)
    scores = generator.normal(size=(rows, classes)).astype(np.float32)
    scores[np.arange(rows), y] += lift
    return Targets("single", tuple(map(str, range(classes))), y), scores


def test_intervals_are_percentiles_over_the_same_draws() -> None:
    targets, scores = noisy_scores()
    measured, counts = bootstrap(targets, scores, resamples=50, seed=4), draw_resamples(400, 50, 4)
    y, predicted = targets.values, scores.argmax(1)
    values = {"top1": [], "balanced_accuracy": [], "macro_f1": []}
    for weights in counts.T:
        values["top1"].append(100 * sk.accuracy_score(y, predicted, sample_weight=weights))
        values["balanced_accuracy"].append(100 * sk.balanced_accuracy_score(y, predicted, sample_weight=weights))
        values["macro_f1"].append(100 * sk.f1_score(y, predicted, average="macro", sample_weight=weights))
    for name, each in values.items():
        assert measured[name] == pytest.approx(tuple(np.percentile(each, [2.5, 97.5])), rel=1e-9)
    assert list(measured) == list(compute_metrics(targets, scores))


def test_draws() -> None:
    counts = draw_resamples(100, 300, seed=1)
    assert (counts.sum(0) == 100).all()
    assert counts.std() == pytest.approx(1, abs=0.03)  # as a Poisson variable's
    assert not np.array_equal(counts, draw_resamples(100, 300, seed=2))
    np.testing.assert_array_equal(counts, draw_resamples(100, 300, seed=1))


def test_pieces_of_resamples_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, scores = noisy_scores()
    _, other = noisy_scores(seed=1)
    whole, compared = bootstrap(targets, scores, resamples=250), compare_predictions(targets, scores, other)
    monkeypatch.setattr(metrics, "_PIECE_COUNTS", 400 * 60)
    np.testing.assert_array_equal(np.concatenate(list(_draw_pieces(400, 250, 3)), 1), draw_resamples(400, 250, 3))
    assert bootstrap(targets, scores, resamples=250) == whole
    assert compare_predictions(targets, scores, other) == compared
    assert max(counts.size for counts in _draw_pieces(400, 250, 3)) == 400 * 60


def test_no_intervals_from_ranks_of_too_many_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, scores = noisy_scores()
    whole = bootstrap(targets, scores)
    monkeypatch.setattr(metrics, "_MAX_RANKED", scores.size - 1)
    assert bootstrap(targets, scores) == whole | {"auroc": None}


def test_top1_interval_is_about_the_binomial_one() -> None:
    targets, scores = noisy_scores(rows=2000)
    share = compute_metrics(targets, scores)["top1"] / 100
    low, high = bootstrap(targets, scores)["top1"]
    half = 196 * np.sqrt(share * (1 - share) / 2000)
    assert (low, high) == pytest.approx((100 * share - half, 100 * share + half), abs=0.3)


def test_undefined_resamples_are_left_out() -> None:
    values = np.array([1] + [0] * 9)
    measured = bootstrap(Targets("single", ("a", "b"), values), np.eye(10, 2, dtype=np.float32))
    assert measured["auroc"] is not None
    assert measured["top1"][0] < measured["top1"][1]
    assert bootstrap(Targets("single", ("a", "b"), 0 * values), np.eye(10, 2, dtype=np.float32))["auroc"] is None


def test_intervals_of_many_rows_take_seconds() -> None:
    targets, scores = noisy_scores(rows=10_000, classes=200, lift=3)
    began = time.process_time()
    measured = bootstrap(targets, scores)
    assert time.process_time() - began < 8
    assert all(low < compute_metrics(targets, scores)[name] < high for name, (low, high) in measured.items())


def test_mcnemar_is_exact() -> None:
    targets, first = noisy_scores(rows=200, seed=1, lift=2)
    _, second = noisy_scores(rows=200, seed=2, lift=1)
    measured = compare_predictions(targets, first, second)
    one, other = first.argmax(1) == targets.values, second.argmax(1) == targets.values
    worse, discordant = int((~one & other).sum()), int((one != other).sum())
    assert measured.p_value == pytest.approx(min(1, 2 * stats.binom.cdf(worse, discordant, 0.5)))
    assert (measured.metric, measured.test) == ("top1", "mcnemar")
    assert measured.difference == pytest.approx(100 * (one.mean() - other.mean()))
    assert measured.interval[0] < measured.difference < measured.interval[1]
    swapped = compare_predictions(targets, second, first)
    assert swapped.p_value == measured.p_value
    assert swapped.interval == pytest.approx((-measured.interval[1], -measured.interval[0]))


def test_equal_predictions() -> None:
    targets, scores = noisy_scores()
    assert compare_predictions(targets, scores, scores) == PairedComparison("top1", "mcnemar", 0.0, (0.0, 0.0), 1.0)
    numbers = Targets("regression", (), np.arange(50.0))
    assert compare_predictions(numbers, scores[:50, 0], scores[:50, 0]).p_value == 1


def test_paired_bootstrap() -> None:
    generator = np.random.default_rng(0)
    y = generator.normal(size=300)
    numbers, close, far = Targets("regression", (), y), y + 0.1 * generator.normal(size=300), y + generator.normal(size=300)
    measured = compare_predictions(numbers, close, far)
    assert (measured.metric, measured.test) == ("r2", "paired bootstrap")
    assert measured.p_value == pytest.approx(2 / 1001)
    assert measured.difference == pytest.approx(sk.r2_score(y, close) - sk.r2_score(y, far))
    alike = compare_predictions(numbers, y + 0.1 * generator.normal(size=300), close)
    assert alike.p_value > 0.05
    assert alike.interval[0] < 0 < alike.interval[1]
    labels = Targets("multi", ("a", "b"), np.stack([y > 0, y > 1], 1))
    assert compare_predictions(labels, np.stack([close, close], 1), np.stack([far, far], 1)).metric == "map"


def test_comparisons_with_chance_are_rarely_sure() -> None:
    """Among pairs that are equally good, at most about 5 % may have a p-value below 0.05."""
    sure = 0
    for seed in range(60):
        targets, first = noisy_scores(rows=120, seed=2 * seed, lift=1)
        _, second = noisy_scores(rows=120, seed=2 * seed + 1, lift=1)
        sure += compare_predictions(targets, first, second, seed=seed).p_value < 0.05
    assert sure <= 7


def test_unusable_input() -> None:
    targets, scores = noisy_scores(rows=10)
    with pytest.raises(UsageError, match="1 resamples: give at least 2"):
        bootstrap(targets, scores, resamples=1)
    with pytest.raises(UsageError, match="r2 is undefined on these 10 rows"):
        compare_predictions(Targets("regression", (), np.ones(10)), scores[:, 0], scores[:, 1])
    with pytest.raises(UsageError, match="no rows"):
        bootstrap(targets.take(np.arange(0)), scores[:0])
