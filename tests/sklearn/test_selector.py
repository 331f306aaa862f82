"""Head2Toe's selection as a scikit-learn transformer."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, MultiTaskLasso
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils.estimator_checks import parametrize_with_checks

from densefeat.errors import UsageError
from densefeat.sklearn import HeadToToeSelector


@parametrize_with_checks([HeadToToeSelector(), HeadToToeSelector(share=1.0, alpha=0.5)])
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def make_rows(rows: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of which 3 and 8 predict; their layers; classes."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((rows, 12)) + 1
    y = np.where(x[:, 3] - x[:, 8] > 0, "b", "a")
    return x, np.array(list("ababababccca")), y


@pytest.mark.parametrize("kind", ["classes", "numbers", "labels"])
def test_relevance_as_by_scikit_learn(kind: str) -> None:
    x, groups, classes = make_rows()
    numbers, labels = 5 * x[:, 3] - 1e3, np.stack([x[:, 3] > 1, x[:, 8] > 1], 1).astype(int)
    y = {"classes": classes, "numbers": numbers, "labels": labels}[kind]
    targets = {
        "classes": np.stack([classes == "a", classes == "b"], 1) * 2.0 - 1,
        "numbers": (numbers / numbers.std())[:, None],
        "labels": labels * 2.0 - 1,
    }[kind]
    normal = np.empty_like(x)
    for group in "abc":
        normal[:, groups == group] = normalize(x[:, groups == group])
    largest = np.linalg.norm((normal - normal.mean(0)).T @ (targets - targets.mean(0)), axis=1).max() / len(x)
    expected = np.linalg.norm(MultiTaskLasso(0.1 * largest, tol=1e-10).fit(normal, targets).coef_, axis=0)
    selector = HeadToToeSelector(groups, share=0.2, alpha=0.1).fit(x, y)
    np.testing.assert_allclose(selector.relevance_, expected, atol=0.01 * expected.max())
    assert selector.n_features_in_ == 12
    kept = selector.get_support(indices=True)
    assert kept.tolist() == ([3, 8] if kind != "numbers" else np.sort(np.argsort(-expected)[: len(kept)]).tolist())
    np.testing.assert_array_equal(selector.transform(x), x[:, kept])


def test_in_a_pipeline() -> None:
    x, _, y = make_rows()
    pipeline = make_pipeline(StandardScaler(), HeadToToeSelector(share=0.2), LogisticRegression()).fit(x[:100], y[:100])
    assert pipeline.score(x[100:], y[100:]) > 0.9
    assert pipeline[:-1].get_feature_names_out().tolist() == ["x3", "x8"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"share": 0}, "share 0: give a number above 0 and at most 1"),
        ({"share": 1.5}, "share 1.5"),
        ({"share": True}, "share True"),
        ({"alpha": 1.0}, "alpha 1.0: give a number above 0 and below 1"),
        ({"alpha": "much"}, "alpha 'much'"),
        ({"groups": [1, 2]}, "2 groups for 12 features: give the layer of each feature"),
    ],
)
def test_wrong_parameters(options: dict[str, Any], match: str) -> None:
    x, _, y = make_rows()
    with pytest.raises(UsageError, match=match):
        HeadToToeSelector(**options).fit(x, y)


def test_several_columns_of_classes_are_refused() -> None:
    x, _, _ = make_rows()
    with pytest.raises(UsageError, match="y has several columns of classes: give one, or columns of 0 and 1"):
        HeadToToeSelector().fit(x, np.arange(400).reshape(200, 2) % 5)
