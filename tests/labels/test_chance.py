"""Predictions that are no better than guessing."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from densefeat.labels.chance import count_classes, describe_chance
from densefeat.labels.targets import Targets
from densefeat.probing.metrics import compute_metrics

SINGLE = Targets("single", ("a", "b"), np.array([0] * 98 + [1] * 2))


def describe(targets: Targets, scores: np.ndarray) -> str | None:
    return describe_chance(compute_metrics(targets, scores), count_classes(targets), len(targets))


def test_one_class_for_all_rows() -> None:
    scores = np.tile([1.0, 0.0], (100, 1)).astype(np.float32)
    assert balanced_accuracy_score(SINGLE.values, scores.argmax(1)) == 0.5
    assert describe(SINGLE, scores) == (
        "no better than always answering the most frequent class, which is right for 98.00 %: top-1 98.00 %,"
        " balanced accuracy 50.00 % of 50.00 % by chance"
    )


@pytest.mark.parametrize("wrong", [[98], [0, 1, 2], []])  # the rare class half found; found with a few false alarms; all right
def test_what_finds_the_rare_class_is_better(wrong: list[int]) -> None:
    predicted = SINGLE.values.copy()
    predicted[wrong] = 1 - predicted[wrong]
    assert describe(SINGLE, np.eye(2, dtype=np.float32)[predicted]) is None


def test_several_labels_and_numbers() -> None:
    random = np.random.default_rng(0)
    multi = Targets("multi", ("a", "b"), random.random((400, 2)) < 0.25)
    noise = random.standard_normal((400, 2)).astype(np.float32)
    assert (describe(multi, noise) or "").startswith("no better than guessing: mAP 2")
    assert describe(multi, noise + 4 * multi.values) is None
    numbers = Targets("regression", (), random.standard_normal(50))
    assert describe(numbers, np.full(50, numbers.values.mean())) == "no better than always answering the mean: r2 0"
    assert describe(numbers, numbers.values.astype(np.float32)) is None


def test_a_single_class_tells_nothing() -> None:
    """Not even where all are right."""
    said = "all 9 rows that were judged are of one class: the figures say nothing of telling classes apart"
    for scores in ([0.0, 1.0], [1.0, 0.0]):
        assert describe(Targets("single", ("a", "b"), np.zeros(9, np.int64)), np.tile(scores, (9, 1))) == said
    assert describe_chance({"top1": 0.0, "balanced_accuracy": 0.0}, np.zeros(2), 0) is None
