"""Intervals against resampled rows measured by scikit-learn, and tests against scipy's."""

import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from densefeat.errors import UsageError
from densefeat.labels.targets import Targets
from densefeat.probe import intervals
from densefeat.probe.intervals import Comparison, _drawn, _draws, bootstrap, compare
from densefeat.probe.metrics import compute_metrics


def made(rows: int = 400, classes: int = 6, seed: int = 0, lift: float = 1.0) -> tuple[Targets, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = np.random.default_rng(99).integers(0, classes, rows)
    scores = generator.normal(size=(rows, classes)).astype(np.float32)
    scores[np.arange(rows), y] += lift
    return Targets("single", tuple(map(str, range(classes))), y), scores


def test_intervals_are_percentiles_over_the_same_draws() -> None:
    targets, scores = made()
    found, counts = bootstrap(targets, scores, resamples=50, seed=4), _draws(400, 50, 4)
    y, predicted = targets.values, scores.argmax(1)
    values = {"top1": [], "balanced_accuracy": [], "macro_f1": []}
    for weights in counts.T:
        values["top1"].append(100 * sk.accuracy_score(y, predicted, sample_weight=weights))
        values["balanced_accuracy"].append(100 * sk.balanced_accuracy_score(y, predicted, sample_weight=weights))
        values["macro_f1"].append(100 * sk.f1_score(y, predicted, average="macro", sample_weight=weights))
    for name, each in values.items():
        assert found[name] == pytest.approx(tuple(np.percentile(each, [2.5, 97.5])), rel=1e-9)
    assert list(found) == list(compute_metrics(targets, scores))


def test_draws() -> None:
    counts = _draws(100, 300, seed=1)
    assert (counts.sum(0) == 100).all()
    assert counts.std() == pytest.approx(1, abs=0.03)  # as a Poisson variable's
    assert not np.array_equal(counts, _draws(100, 300, seed=2))
    np.testing.assert_array_equal(counts, _draws(100, 300, seed=1))


def test_pieces_of_resamples_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, scores = made()
    _, other = made(seed=1)
    whole, compared = bootstrap(targets, scores, resamples=250), compare(targets, scores, other)
    monkeypatch.setattr(intervals, "_PIECE_COUNTS", 400 * 60)
    np.testing.assert_array_equal(np.concatenate(list(_drawn(400, 250, 3)), 1), _draws(400, 250, 3))
    assert bootstrap(targets, scores, resamples=250) == whole
    assert compare(targets, scores, other) == compared
    assert max(counts.size for counts in _drawn(400, 250, 3)) == 400 * 60


def test_no_intervals_from_ranks_of_too_many_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, scores = made()
    whole = bootstrap(targets, scores)
    monkeypatch.setattr(intervals, "_MAX_RANKED", scores.size - 1)
    assert bootstrap(targets, scores) == whole | {"auroc": None}


def test_top1_interval_is_about_the_binomial_one() -> None:
    targets, scores = made(rows=2000)
    share = compute_metrics(targets, scores)["top1"] / 100
    low, high = bootstrap(targets, scores)["top1"]
    half = 196 * np.sqrt(share * (1 - share) / 2000)
    assert (low, high) == pytest.approx((100 * share - half, 100 * share + half), abs=0.3)


def test_undefined_resamples_are_left_out() -> None:
    values = np.array([1] + [0] * 9)
    found = bootstrap(Targets("single", ("a", "b"), values), np.eye(10, 2, dtype=np.float32))
    assert found["auroc"] is not None
    assert found["top1"][0] < found["top1"][1]
    assert bootstrap(Targets("single", ("a", "b"), 0 * values), np.eye(10, 2, dtype=np.float32))["auroc"] is None


def test_many_rows_take_seconds() -> None:
    targets, scores = made(rows=10_000, classes=200, lift=3)
    began = time.process_time()
    found = bootstrap(targets, scores)
    assert time.process_time() - began < 8
    assert all(low < compute_metrics(targets, scores)[name] < high for name, (low, high) in found.items())


def test_mcnemar_is_exact() -> None:
    targets, first = made(rows=200, seed=1, lift=2)
    _, second = made(rows=200, seed=2, lift=1)
    found = compare(targets, first, second)
    one, other = first.argmax(1) == targets.values, second.argmax(1) == targets.values
    worse, discordant = int((~one & other).sum()), int((one != other).sum())
    assert found.p_value == pytest.approx(min(1, 2 * stats.binom.cdf(worse, discordant, 0.5)))
    assert (found.metric, found.test) == ("top1", "mcnemar")
    assert found.difference == pytest.approx(100 * (one.mean() - other.mean()))
    assert found.interval[0] < found.difference < found.interval[1]
    swapped = compare(targets, second, first)
    assert swapped.p_value == found.p_value
    assert swapped.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_equal_predictions() -> None:
    targets, scores = made()
    assert compare(targets, scores, scores) == Comparison("top1", "mcnemar", 0.0, (0.0, 0.0), 1.0)
    numbers = Targets("regression", (), np.arange(50.0))
    assert compare(numbers, scores[:50, 0], scores[:50, 0]).p_value == 1


def test_paired_bootstrap() -> None:
    generator = np.random.default_rng(0)
    y = generator.normal(size=300)
    numbers, close, far = Targets("regression", (), y), y + 0.1 * generator.normal(size=300), y + generator.normal(size=300)
    found = compare(numbers, close, far)
    assert (found.metric, found.test) == ("r2", "paired bootstrap")
    assert found.p_value == pytest.approx(2 / 1001)
    assert found.difference == pytest.approx(sk.r2_score(y, close) - sk.r2_score(y, far))
    alike = compare(numbers, y + 0.1 * generator.normal(size=300), close)
    assert alike.p_value > 0.05
    assert alike.interval[0] < 0 < alike.interval[1]
    labels = Targets("multi", ("a", "b"), np.stack([y > 0, y > 1], 1))
    assert compare(labels, np.stack([close, close], 1), np.stack([far, far], 1)).metric == "map"


def test_comparisons_with_chance_are_rarely_sure() -> None:
    """Of pairs that are equally good, at most about 5 % may have a p-value below 0.05."""
    sure = 0
    for seed in range(60):
        targets, first = made(rows=120, seed=2 * seed, lift=1)
        _, second = made(rows=120, seed=2 * seed + 1, lift=1)
        sure += compare(targets, first, second, seed=seed).p_value < 0.05
    assert sure <= 7


def test_wrong_use() -> None:
    targets, scores = made(rows=10)
    with pytest.raises(UsageError, match="1 resamples: at least 2"):
        bootstrap(targets, scores, resamples=1)
    with pytest.raises(UsageError, match="r2 is undefined on these 10 rows"):
        compare(Targets("regression", (), np.ones(10)), scores[:, 0], scores[:, 1])
    with pytest.raises(UsageError, match="no rows"):
        bootstrap(targets.take(np.arange(0)), scores[:0])
