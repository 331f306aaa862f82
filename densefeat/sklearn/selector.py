"""Head2Toe's selection of features as a scikit-learn transformer, for features of any origin."""

from numbers import Real
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from densefeat.errors import UsageError
from densefeat.labels import Targets
from densefeat.probing import (
    encode_targets,
    find_largest_penalty,
    fit_group_lasso,
    keep_features,
    mark_kept,
    measure_moments,
    measure_relevance,
    normalize_layers,
)


class HeadToToeSelector(SelectorMixin, BaseEstimator):
    """A selector of the features that matter most in a linear fit which a group lasso (L2,1) makes sparse.

    Source: Evci et al., Head2Toe (arXiv 2201.03529); how the fit differs from the paper's: :mod:`densefeat.probing.layers`.
    ``transform`` returns the selected columns of ``X`` as they are: layers are normalised for the selection alone.

    ``X``: numbers ``(n, D)``. ``y``: classes ``(n,)``; several labels a row as 0 and 1, ``(n, K)``; or, where they are no whole
    numbers, numbers to predict, ``(n,)`` or ``(n, K)``.

    Args:
        groups: The layer of each feature, ``(D,)``, of any values that can be compared: the features of a layer are divided by
            their norm in each row. None: features are taken as they are.
        share: The share of the features to keep, more than 0 and at most 1. At least one is kept, and none without relevance,
            unless all are.
        alpha: The penalty, as a share of the largest useful one, more than 0 and less than 1. The larger, the fewer features
            have any relevance.

    Attributes:
        relevance_: The norm of each feature's weights in the fit, float64 ``(D,)``.
        n_features_in_: D.
        feature_names_in_: The names of the columns, if ``fit`` got a table.

    Raises:
        UsageError: In ``fit``, a parameter is out of range, or groups are not as many as the features.
    """

    def __init__(self, groups: Any = None, share: float = 0.1, alpha: float = 0.03) -> None:
        self.groups = groups
        self.share = share
        self.alpha = alpha

    def fit(self, X: Any, y: Any) -> Self:
        """Measure the relevance of every feature, and choose those to keep."""
        for name, value, largest in (("share", self.share, True), ("alpha", self.alpha, False)):
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value <= 1 or (value == 1 and not largest):
                raise UsageError(f"{name} {value!r}: give a number above 0 and {'at most' if largest else 'below'} 1")
        features, targets = validate_data(self, X, y, multi_output=True, dtype=np.float64)
        order = np.arange(features.shape[1])
        if self.groups is not None:
            order, widths = _order_by_group(self.groups, features.shape[1])
            features = features[:, order]
            normalize_layers(features, widths)
        moments = measure_moments(features, _encode(targets), np.arange(len(features)))
        weights = fit_group_lasso(moments, self.alpha * find_largest_penalty(moments))
        self.relevance_ = np.empty(len(order))
        self.relevance_[order] = measure_relevance(weights)
        return self

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        kept = keep_features(self.relevance_, max(1, round(self.share * len(self.relevance_))))
        return mark_kept(kept, len(self.relevance_)) > 0

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = tags.target_tags.two_d_labels = tags.target_tags.multi_output = True
        return tags


def _order_by_group(groups: Any, features: int) -> tuple[np.ndarray, list[int]]:
    """Return an order of the features in which those of a group follow one another, and the size of each group."""
    groups = column_or_1d(groups)
    if len(groups) != features:
        raise UsageError(f"{len(groups)} groups for {features} features: give the layer of each feature")
    members, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    return np.argsort(members, kind="stable"), sizes.tolist()


def _encode(y: np.ndarray) -> np.ndarray:
    """Encode targets as float64 ``(n, K)``, by their kind; numbers are scaled to a deviation of 1."""
    kind = type_of_target(y, input_name="y", raise_unknown=True)
    if kind.startswith("continuous"):
        numbers = y.reshape(len(y), -1).astype(np.float64)
        return numbers / np.maximum(numbers.std(0), np.finfo(np.float64).tiny)
    if kind == "multilabel-indicator":
        return encode_targets(Targets("multi", (), y > 0))
    if kind.endswith("multioutput"):
        raise UsageError("y has several columns of classes: give one, or columns of 0 and 1")
    classes, codes = np.unique(y.reshape(len(y)), return_inverse=True)
    return encode_targets(Targets("single", tuple(map(str, classes)), codes))
