"""Everything that validation rows say about how sure a head's answers are."""

from dataclasses import dataclass

import numpy as np

from densefeat.certainty.calibration import fit_temperature, judge_answers, measure_calibration, to_probabilities
from densefeat.certainty.outliers import OutlierDetector
from densefeat.certainty.risk import RiskThreshold, find_threshold
from densefeat.certainty.sets import find_quantile, measure_nonconformity, select_classes
from densefeat.errors import UsageError
from densefeat.labels import Targets, Task

MAX_ROWS = 20_000  # validation rows that are kept


@dataclass(frozen=True)
class Certainty:
    """How sure a head's answers are, by m validation rows that the head did not see.

    An answer is a class, the set of all classes of a row (multi), or a number (regression).

    ``temperature``: divides scores before softmax (single) or sigmoid (multi); 1.0 for a regression, and where the fitted one
    would raise the Brier score of the validation rows.
    ``confidence``: float64 ``(m,)``, of the answers to the validation rows, ascending; ``right``: bool ``(m,)``, whether they
    are right; both empty for a regression. ``nonconformity``: float64 ``(m,)``, ascending, see
    :func:`densefeat.certainty.sets.measure_nonconformity`. ``outliers``: None where features were not kept.

    What it promises holds for rows that are drawn as the validation rows were, and for the head that scored these. A head that
    was fitted again on all rows has seen more; its errors are assumed not to be more frequent.
    """

    task: Task
    temperature: float
    confidence: np.ndarray
    right: np.ndarray
    nonconformity: np.ndarray
    outliers: OutlierDetector | None = None

    def calibrate(self, scores: np.ndarray) -> np.ndarray:
        """Divide scores by the temperature, float64: softmax and sigmoid of these are calibrated probabilities."""
        return scores.astype(np.float64) / self.temperature

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities of classes, float64 ``(n, K)``. Raises UsageError for a regression."""
        self._check_classes("probabilities")
        return to_probabilities(self.task, scores, self.temperature)

    def confidences(self, scores: np.ndarray) -> np.ndarray:
        """Return the confidence of each answer, float64 ``(n,)``. Raises UsageError for a regression.

        single: the probability of the most probable class; multi: the product over classes of the probability that its label
        is as predicted.
        """
        return _measure_confidence(self.task, self.probabilities(scores))

    def find_threshold(self, risk: float) -> RiskThreshold:
        """Find which answers to give so that at most a share ``risk`` of them is wrong, with a confidence of 90 %.

        Raises UsageError where the validation rows do not support that, and for a regression.
        """
        self._check_classes("a risk")
        return find_threshold(self.confidence, self.right, risk)

    def choose_sets(self, scores: np.ndarray, level: float) -> np.ndarray:
        """Return sets of classes, bool ``(n, K)``, that hold the truth with a probability of at least ``level``.

        single: the class; multi: all classes of a row. Raises UsageError where validation rows are too few, and for a
        regression.
        """
        quantile = self.find_quantile(level)
        return select_classes(self.task, self.probabilities(scores), quantile)

    def choose_answers(self, scores: np.ndarray, risk: float) -> np.ndarray:
        """Return which answers to give for a risk, bool ``(n,)``. Raises UsageError as :meth:`find_threshold`."""
        return self.confidences(scores) >= self.find_threshold(risk).threshold

    def find_quantile(self, level: float) -> float:
        """Return the size of sets, or half the width of intervals, for a level. Raises UsageError as :meth:`choose_sets`."""
        return find_quantile(self.nonconformity, level)

    def _check_classes(self, subject: str) -> None:
        if self.task == "regression":
            raise UsageError(f"{subject} of a regression: numbers are not right or wrong; ask for intervals of a level instead")


def _measure_confidence(task: Task, probabilities: np.ndarray) -> np.ndarray:
    if task == "multi":
        return np.exp(np.log(np.maximum(probabilities, 1 - probabilities)).sum(1))
    return probabilities.max(1)


def fit_certainty(targets: Targets, scores: np.ndarray, train: Targets | None = None, seed: int = 0) -> Certainty:
    """Fit on validation rows.

    Args:
        targets: Of n validation rows, at least 1.
        scores: ``(n, K)``, regression ``(n,)``: by a head that did not see these rows. float32, finite.
        train: Of the rows that the head learnt from. The scores of classes that none of them has, or (multi) all, are constant
            and say nothing about the temperature. None: there are no such classes.
        seed: For the draw of 20,000 rows, where there are more.
    """
    kept = np.arange(len(targets))
    if len(kept) > MAX_ROWS:
        kept = np.sort(np.random.default_rng(seed).permutation(len(kept))[:MAX_ROWS])
    targets, scores = targets.take(kept), scores[kept]
    empty = np.empty(0)
    if targets.task == "regression":
        errors = np.sort(measure_nonconformity(targets.task, scores, targets.values))
        return Certainty(targets.task, 1.0, empty, np.empty(0, bool), errors)
    temperature = _fit_varying(targets, scores, None if train is None else _find_varying(train))
    chances = to_probabilities(targets.task, scores, temperature)
    right = judge_answers(targets, scores)
    confidence = _measure_confidence(targets.task, chances)
    order = np.argsort(confidence, kind="stable")
    nonconformity = np.sort(measure_nonconformity(targets.task, chances, targets.values))
    return Certainty(targets.task, temperature, confidence[order], right[order], nonconformity)


def _find_varying(train: Targets) -> np.ndarray:
    """Find the classes that some training rows have and, multi, others have not: bool ``(K,)``."""
    if train.task == "multi":
        return np.asarray(train.values.any(0) & ~train.values.all(0))
    return np.bincount(train.values, minlength=len(train.classes)) > 0


def _fit_varying(targets: Targets, scores: np.ndarray, varying: np.ndarray | None) -> float:
    """Fit the temperature on classes that vary and, single, on rows that have one of them; 1.0 if there are none."""
    if varying is None or varying.all():
        return _fit_if_better(targets, scores)
    names = tuple(name for name, used in zip(targets.classes, varying.tolist(), strict=True) if used)
    if targets.task == "multi":
        return _fit_if_better(Targets("multi", names, targets.values[:, varying]), scores[:, varying]) if names else 1.0
    rows = varying[targets.values]
    if not rows.any():
        return 1.0
    codes = (np.cumsum(varying) - 1)[targets.values[rows]]
    return _fit_if_better(Targets("single", names, codes), scores[rows][:, varying])


def _fit_if_better(targets: Targets, scores: np.ndarray) -> float:
    """Fit the temperature; keep 1.0 where that has a lower Brier score.

    The votes of neighbours leave many classes without any: the log loss of the few rows that have such a class would ask for a
    temperature that flattens all others.
    """
    temperature = fit_temperature(targets, scores)
    fitted, plain = (measure_calibration(targets, scores, t)["brier"] for t in (temperature, 1.0))
    return temperature if fitted <= plain else 1.0
