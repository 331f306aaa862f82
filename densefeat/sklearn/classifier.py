"""The probe's logistic regression, calibrated, as a scikit-learn classifier for features of one's own."""

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from densefeat.certainty import fit_certainty
from densefeat.errors import UsageError
from densefeat.labels import Targets, hold_out
from densefeat.probing import fit_head


class CalibratedClassifier(ClassifierMixin, BaseEstimator):
    """A logistic regression with calibrated probabilities and sets of classes of a promised coverage.

    As ``densefeat probe`` with the protocol logreg: C is chosen of 45 values on validation rows, the temperature is fitted on
    them with the scores of the head that did not see them, and the head is fitted again on all rows.

    Args:
        validation: The share of the rows held out to choose C and to calibrate, stratified by class; at least one row.
        standardize: Divide each feature by its deviation over the training rows.
        random_state: The seed of the split, an int from 0.

    Attributes:
        classes_: The classes, in order.
        C_: The value of C that was chosen.
        certainty_: The :class:`densefeat.certainty.Certainty` of the validation rows.
        n_features_in_, feature_names_in_: As scikit-learn's.
    """

    def __init__(self, validation: float = 0.2, standardize: bool = False, random_state: int = 0) -> None:
        self.validation = validation
        self.standardize = standardize
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on features ``(n, D)``, computed in float32, and classes ``(n,)``.

        Raises UsageError, which is a ValueError, for a share that leaves no rows, and for fewer than two classes.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2)
        check_classification_targets(y)
        if not 0 < self.validation < 1:
            raise UsageError(f"validation={self.validation!r}: give the share of rows to hold out, above 0 and below 1")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UsageError(f"all {len(y)} rows have one class, {self.classes_[0]!r}: a classifier needs two")
        targets = Targets("single", tuple(map(str, range(len(self.classes_)))), codes.astype(np.int64))
        val = hold_out(targets, self.validation, self.random_state)
        x = np.array(X, np.float32, order="C")  # fit_head overwrites it
        fitted = fit_head("logreg", x, targets, val, standardize=self.standardize)
        self._head, self.C_ = fitted.head, float(fitted.chosen["C"])
        self.certainty_ = fit_certainty(targets.take(val), fitted.val_scores, targets.take(~val), self.random_state)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores, float64: ``(n, K)``, their softmax is the probability; of two classes ``(n,)``, the log odds."""
        scores = self._scores(X)
        scores = self.certainty_.calibrate(scores)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return calibrated probabilities, float64 ``(n, K)``."""
        scores = self._scores(X)
        return self.certainty_.probabilities(scores)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each row."""
        codes = self._scores(X).argmax(1)
        return self.classes_[codes]

    def predict_set(self, X: Any, level: float = 0.95) -> np.ndarray:
        """Return which classes may be right, bool ``(n, K)``: sets that hold the truth with a probability of ``level``.

        Raises UsageError where the validation rows are too few for the level.
        """
        scores = self._scores(X)
        return self.certainty_.choose_sets(scores, level)

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self._head.scores(validate_data(self, X, dtype=np.float32, reset=False))
