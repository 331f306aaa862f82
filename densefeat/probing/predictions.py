"""From scores to labels, probabilities, confused classes and the worst mistakes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from densefeat.certainty import judge_answers
from densefeat.labels import SEPARATOR, Targets, Task, join_labels

_LISTED = 20  # pairs of confused classes
MATRIX_CLASSES = 2000  # the most classes for which a confusion matrix is made


def predict_labels(task: Task, classes: Sequence[str], scores: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the prediction for each row as text, and its certainty, float64 ``(n,)``.

    single: the class with the highest score, and its probability by softmax; multi: the classes with a score above 0, as
    ``a|b`` (a lone ``|`` if there are none), and the highest score; regression: the value, as both.
    """
    if task == "regression":
        return [f"{value:.7g}" for value in scores.tolist()], scores.astype(np.float64)
    if task == "multi":
        return [join_labels(row > 0, classes) for row in scores], scores.max(1).astype(np.float64)
    return [classes[code] for code in scores.argmax(1).tolist()], softmax(scores.astype(np.float64), axis=1).max(1)


def format_probabilities(scores: np.ndarray, probability: np.ndarray | None) -> list[str]:
    """Write the probability of each prediction as text.

    ``probability``: single ``(n,)``: of the class; multi ``(n, K)``: those of the predicted classes are written, ``0.9|0.7``;
    None: of numbers, nothing.
    """
    if probability is None:
        return [""] * len(scores)
    if probability.ndim == 2:
        pairs = zip(scores, probability, strict=True)
        return [SEPARATOR.join(f"{chance:.4f}" for chance in chances[row > 0]) for row, chances in pairs]
    return [f"{chance:.6g}" for chance in probability]


def confusion_matrix(targets: Targets, scores: np.ndarray) -> np.ndarray:
    """Count the rows of each class (first axis) by the predicted class: int64 ``(K, K)``."""
    size = len(targets.classes)
    return np.bincount(targets.values * size + scores.argmax(1), minlength=size * size).reshape(size, size)


def list_confusions(targets: Targets, scores: np.ndarray) -> list[dict[str, Any]]:
    """List the pairs of classes that were most often confused, at most 20; empty unless targets are single-label.

    Each has ``label``, ``predicted``, ``rows``, and ``of``: all rows of the label.
    """
    if targets.task != "single" or len(targets.classes) > MATRIX_CLASSES:
        return []
    counts = confusion_matrix(targets, scores)
    sizes = counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_LISTED]
    pairs = [divmod(place, len(counts)) for place in order.tolist() if counts.flat[place]]
    return [
        {
            "label": targets.classes[true],
            "predicted": targets.classes[guess],
            "rows": int(counts[true, guess]),
            "of": int(sizes[true]),
        }
        for true, guess in pairs
    ]


def worst_mistakes(targets: Targets, scores: np.ndarray, count: int) -> np.ndarray:
    """Return positions of the worst mistakes, the worst first, at most ``count``. See :func:`rate_mistakes`."""
    badness = rate_mistakes(targets, scores)
    order = np.argsort(-badness, kind="stable")
    return order[: min(count, int(np.count_nonzero(badness >= 0)))]


def rate_mistakes(targets: Targets, scores: np.ndarray) -> np.ndarray:
    """Rate how bad each mistake is, float64 ``(n,)``; -1 for what is right.

    single: the probability of the wrong class; regression: the error; multi: the mean logistic loss, if a label is wrong.
    """
    if targets.task == "regression":
        badness = np.abs(scores - targets.values)
        return np.where(badness > 0, badness, -1.0)
    if targets.task == "single":
        badness = predict_labels("single", targets.classes, scores)[1]
    else:
        badness = np.logaddexp(0, np.where(targets.values, -scores, scores)).mean(1)
    return np.where(judge_answers(targets, scores), -1.0, badness)
