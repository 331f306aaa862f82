"""The calibrated classifier: scikit-learn's own checks, and the same numbers as the probe's protocol."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from densefeat.errors import UsageError
from densefeat.sklearn import CalibratedClassifier


@parametrize_with_checks([CalibratedClassifier()])
def test_checks_of_scikit_learn(estimator: CalibratedClassifier, check: object) -> None:
    check(estimator)  # type: ignore[operator]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x + 8 * np.random.default_rng(0).standard_normal(x.shape), np.array([f"digit {label}" for label in y])


def test_probabilities_and_sets(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    model = CalibratedClassifier(0.3).fit(x[:1200], y[:1200])
    chances = model.predict_proba(x[1200:])
    assert chances.shape == (597, 10)
    np.testing.assert_allclose(chances.sum(1), 1)
    np.testing.assert_array_equal(model.predict(x[1200:]), model.classes_[chances.argmax(1)])
    plain = LogisticRegression(C=model.C_, max_iter=2000).fit(x[:1200], y[:1200])
    assert (model.predict(x[1200:]) == plain.predict(x[1200:])).mean() > 0.97
    assert log_loss(y[1200:], chances) <= log_loss(y[1200:], plain.predict_proba(x[1200:])) + 0.02
    sets = model.predict_set(x[1200:], 0.9)
    codes = np.searchsorted(model.classes_, y[1200:])
    assert 0.85 < sets[np.arange(597), codes].mean() < 0.97
    assert sets.any(1).all()
    assert sets.sum(1).mean() < model.predict_set(x[1200:], 0.99).sum(1).mean()


def test_in_a_search(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits[0][:300], digits[1][:300]
    pipeline = make_pipeline(StandardScaler(), CalibratedClassifier())
    search = GridSearchCV(pipeline, {"calibratedclassifier__validation": [0.2, 0.4]}, cv=2, scoring="neg_log_loss")
    assert search.fit(x, y).best_score_ > -1.5


@pytest.mark.parametrize(
    ("options", "labels", "match"),
    [
        ({"validation": 1.5}, [0, 1] * 10, r"validation=1\.5: give the share of rows to hold out"),
        ({}, [3] * 20, "all 20 rows have one class, .*3.*: a classifier needs two"),
    ],
)
def test_wrong_use(options: dict, labels: list[int], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        CalibratedClassifier(**options).fit(np.random.default_rng(0).random((20, 3)), labels)


def test_too_few_rows_for_a_level(digits: tuple[np.ndarray, np.ndarray]) -> None:
    model = CalibratedClassifier(0.2).fit(digits[0][:60], digits[1][:60])
    with pytest.raises(UsageError, match=r"12 validation rows cannot promise a coverage of 95 %: that takes 19 at least"):
        model.predict_set(digits[0][:3])
