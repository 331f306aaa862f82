"""Scores as people read them."""

import numpy as np
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import log_loss

from densefeat.labels.targets import Targets
from densefeat.probing.predictions import confusion_matrix, list_confusions, predict_labels, worst_mistakes
from support.probes import single_targets

R = np.random.default_rng(0)


def test_single() -> None:
    scores = np.float32([[0, np.log(3), -50], [5, 0, 0]])
    names, sure = predict_labels("single", ("a", "b", "c"), scores)
    assert names == ["b", "a"]
    np.testing.assert_allclose(sure, [0.75, np.exp(5) / (np.exp(5) + 2)], rtol=1e-6)


def test_several_and_numbers() -> None:
    names, sure = predict_labels("multi", ("a", "b"), np.float32([[1, 2], [-1, -2], [-1, 3]]))
    assert (names, sure.tolist()) == (["a|b", "|", "b"], [2, -1, 3])
    names, sure = predict_labels("regression", (), np.float32([1.5, -2]))
    assert (names, sure.tolist()) == (["1.5", "-2"], [1.5, -2])


def test_confusion() -> None:
    targets, scores = single_targets(R.integers(0, 7, 500), 7), R.random((500, 7))
    expected = sklearn_confusion_matrix(targets.values, scores.argmax(1))
    np.testing.assert_array_equal(confusion_matrix(targets, scores), expected)
    np.fill_diagonal(expected, 0)
    confusions = list_confusions(targets, scores)
    assert [pair["rows"] for pair in confusions] == sorted(expected.ravel().tolist(), reverse=True)[:20]
    for pair in confusions:
        true, guess = (targets.classes.index(pair[name]) for name in ("label", "predicted"))
        assert (pair["rows"], pair["of"]) == (expected[true, guess], np.count_nonzero(targets.values == true))
    assert list_confusions(targets, np.eye(7)[targets.values]) == []


def test_the_worst_come_first() -> None:
    targets = single_targets([0, 0, 0, 1])
    scores = np.float32([[0, 3], [5, 0], [0, 9], [0.1, 0]])
    assert worst_mistakes(targets, scores, 10).tolist() == [2, 0, 3]
    assert worst_mistakes(targets, scores, 1).tolist() == [2]
    numbers = Targets("regression", (), np.array([1.0, 2.0, 3.0]))
    assert worst_mistakes(numbers, np.float32([1, 5, 2]), 10).tolist() == [1, 2]


def test_the_worst_of_several_labels() -> None:
    values = R.random((50, 4)) > 0.5
    scores = R.standard_normal((50, 4)).astype(np.float32)
    scores[:5] = np.where(values[:5], 1, -1)  # all right
    losses = [log_loss(row, 1 / (1 + np.exp(-score)), labels=[False, True]) for row, score in zip(values, scores, strict=True)]
    expected = [row for row in np.argsort(losses)[::-1].tolist() if row >= 5 and ((scores[row] > 0) != values[row]).any()]
    assert worst_mistakes(Targets("multi", tuple("abcd"), values), scores, 10).tolist() == expected[:10]
