"""Points of the plane, against scikit-learn, and where there is little to project."""

import sys

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from densefeat.errors import UsageError
from densefeat.map.projection import _METHODS, _principal_components, check_method, find_clusters, project


def groups(rows: int = 90, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Three groups far apart, and which row is of which."""
    generator = np.random.default_rng(0)
    codes = np.arange(rows) % 3
    centres = 20 * generator.standard_normal((3, width))
    return (centres[codes] + generator.standard_normal((rows, width))).astype(np.float32), codes


@pytest.mark.parametrize("rows", [90, 30])  # more and fewer rows than features
def test_pca_is_scikit_learns(rows: int) -> None:
    features, _ = groups(rows)
    model = PCA(50 if rows > 50 else 29).fit(features)
    wanted = model.transform(features)
    made, share = _principal_components(features, 50)
    assert made.shape == (rows, 50)
    count = wanted.shape[1]
    assert np.allclose(np.abs(made[:, :count]), np.abs(wanted), atol=1e-3)
    assert np.abs(made[:, 29:]).max() < 1e-3 or rows > 50
    assert share == pytest.approx(model.explained_variance_ratio_[:2].sum(), abs=1e-6)


def test_axes_point_one_way() -> None:
    features, _ = groups()
    first, second = (_principal_components(order, 2)[0] for order in (features, features[:, ::-1]))
    assert np.allclose(first, second, atol=1e-3)


# UMAP compiles itself for a minute at its first call
EVERY_METHOD = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow if name == "umap" else ()) for name in _METHODS]
)


@EVERY_METHOD
def test_neighbours_stay_neighbours_and_again_the_same(method: str) -> None:
    features, codes = groups()
    points, words = project(features, method)
    assert (points.shape, points.dtype) == ((90, 2), np.float32)
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.where(np.eye(90), np.inf, 0)
    assert np.array_equal(codes[distances.argmin(1)], codes)
    assert np.array_equal(project(features, method)[0], points)
    assert (
        words
        == {
            "pca": words,
            "umap": "UMAP of the first 50 principal components",
            "tsne": "t-SNE of the first 50 principal components",
        }[method]
    )


@EVERY_METHOD
@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (7, 5), (9, 1), (9, 2), (12, 40)])
def test_little_to_project(method: str, shape: tuple[int, int]) -> None:
    points, words = project(np.random.default_rng(0).standard_normal(shape).astype(np.float32), method)
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()
    fallback = method != "pca" and (shape[0] < 8 or shape[1] < 2)
    assert words.startswith("PCA") == (method == "pca" or fallback)
    assert ("too few" in words or "fewer than two" in words) == fallback


@EVERY_METHOD
def test_constant_features(method: str) -> None:
    points, words = project(np.full((20, 4), 0.1, np.float32), method)
    assert not points.any()
    assert words.startswith("PCA, 0 % of the variance")


def test_clusters_are_the_groups() -> None:
    features, codes = groups()
    found = find_clusters(features, 3)
    assert adjusted_rand_score(codes, found) == 1
    assert np.array_equal(found, find_clusters(features, 3))


def test_clusters_are_counted_from_the_largest() -> None:
    features, codes = groups()
    found = find_clusters(np.concatenate([features, features[codes == 1]]), 3)
    assert np.bincount(found).tolist() == [60, 30, 30]


@pytest.mark.parametrize(("rows", "distinct"), [(1, 1), (2, 2), (20, 4)])
def test_no_more_clusters_than_points(rows: int, distinct: int) -> None:
    features = np.random.default_rng(0).standard_normal((distinct, 6)).astype(np.float32)
    assert set(find_clusters(np.resize(features, (rows, 6)), 10).tolist()) == set(range(distinct))


def test_methods() -> None:
    with pytest.raises(UsageError, match="method 'lda': choose one of pca, umap, tsne"):
        check_method("lda")


def test_umap_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "umap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UsageError, match=r"needs umap-learn: pip install 'densefeat\[umap\]', or take pca or tsne"):
        check_method("umap")
    check_method("tsne")
