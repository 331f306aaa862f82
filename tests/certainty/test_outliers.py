"""Outliers: distances as scipy's and scikit-learn's, p-values that are uniform, and images that are far away."""

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.neighbors import NearestNeighbors

from densefeat.certainty import outliers
from densefeat.certainty.outliers import OutlierDetector, _fit_block, fit_outliers
from densefeat.errors import UsageError

MIX = np.random.default_rng(5).standard_normal((8, 8))


def draw(rows: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of correlated features, one of them constant."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 3, rows)
    x = (generator.standard_normal((rows, 8)) + 2 * np.eye(3, 8)[codes] + shift) @ MIX + 3
    x[:, 7] = 4
    return x.astype(np.float32), codes


def test_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliers, "_PIECE_VALUES", 200)  # several pieces
    x, codes = draw(400, 0)
    block = _fit_block(x, codes, seed=3)
    order = np.random.default_rng(3).permutation(400)
    rows = np.sort(order[80:])  # a fifth is for scaling
    own, classes = x[rows, :7].astype(np.float64), codes[rows]
    scaled = (own - own.mean(0)) / own.std(0)
    means = np.stack([scaled[classes == code].mean(0) for code in range(3)])
    residual = np.zeros((320, 8))  # the constant feature counts among the features that the covariance is shrunk over
    residual[:, :7] = scaled - means[classes]
    share, covariance = ledoit_wolf_shrinkage(residual, assume_centered=True), residual.T @ residual / 320
    shrunk = (1 - share) * covariance + share * np.trace(covariance) / 8 * np.eye(8)
    new = draw(50, 1)[0]
    queries = np.zeros((50, 8))
    queries[:, :7] = (new[:, :7] - own.mean(0)) / own.std(0)
    centres = np.concatenate([means, np.zeros((3, 1))], axis=1)
    wanted = cdist(queries, centres, "mahalanobis", VI=np.linalg.inv(shrunk)).min(1)
    found = block.distances(new)
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-4)
    near = NearestNeighbors(n_neighbors=10, metric="cosine").fit(x[rows]).kneighbors(new)[0][:, -1]
    np.testing.assert_allclose(found[:, 1], near, rtol=0.02, atol=1e-3)  # the bank is float16
    scaling = block.standardize(block.distances(x[np.sort(order[:80])]))
    np.testing.assert_allclose(scaling.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(scaling.std(0), 1, atol=1e-6)


def test_rows_that_are_nearly_alike() -> None:
    """As averages of early layers are: rounded to float16 the rows are longer or shorter by more than they differ."""
    generator = np.random.default_rng(0)
    x = (1 + 5 * generator.random(64) + 0.05 * generator.standard_normal((250, 64))).astype(np.float32)
    block = _fit_block(x[:200], seed=3)
    rows = np.sort(np.random.default_rng(3).permutation(200)[40:])
    near = NearestNeighbors(n_neighbors=10, metric="cosine").fit(x[rows].astype(np.float64))
    found = block.distances(x[200:])[:, 1]
    np.testing.assert_allclose(found, near.kneighbors(x[200:].astype(np.float64))[0][:, -1], rtol=0.02)
    assert found.max() < 2e-4
    same = _fit_block(np.repeat(x[:1], 200, axis=0) * generator.uniform(1, 2, (200, 1)).astype(np.float32))
    assert same.scale[1] == 1  # not the deviation of roundings


def test_p_values_are_uniform_and_far_rows_are_unusual() -> None:
    """Over 60 draws of all rows, the share of p-values up to 5 % is 5 %, up to chance."""
    small = []
    for seed in range(60):
        (x, codes), val, new = draw(150, 3 * seed), draw(99, 3 * seed + 1)[0], draw(200, 3 * seed + 2)[0]
        detector = fit_outliers([("b", x)], codes, seed).with_validation({"b": val})
        small.append([(detector.p_values({"b": new}) <= limit).mean() for limit in (0.05, 0.2, 0.5)])
    np.testing.assert_allclose(np.mean(small, 0), [0.05, 0.2, 0.5], atol=0.02)
    assert (detector.p_values({"b": draw(50, 7, shift=8)[0]}) == 0.01).all()


def test_p_values_by_hand() -> None:
    detector = OutlierDetector({}, np.array([1.0, 2.0, 2.0, 5.0]))
    np.testing.assert_allclose(detector.to_p_values(np.array([0.0, 1.0, 2.0, 3.0, 5.0, 9.0])), [1, 1, 0.8, 0.4, 0.4, 0.2])


def test_several_blocks_and_the_same_result_again() -> None:
    (x, codes), val = draw(300, 0), draw(60, 1)[0]
    detector = fit_outliers([("one", x), ("two", x[:, :4].copy())], codes).with_validation({"one": val, "two": val[:, :4]})
    features = {"two": val[:, :4], "one": val, "unused": val}
    assert detector.scores(features).shape == (60, 2, 2)
    np.testing.assert_allclose(detector.statistics(features), detector.scores(features).mean((1, 2)))
    again = fit_outliers([("one", x), ("two", x[:, :4].copy())], codes)
    np.testing.assert_array_equal(again.statistics(features), detector.statistics(features))
    part = {name: values[:7] for name, values in features.items()}
    np.testing.assert_allclose(detector.statistics(part), detector.statistics(features)[:7], atol=1e-5)
    with pytest.raises(UsageError, match="no features two for telling outliers: give one, two"):
        detector.p_values({"one": val})
    with pytest.raises(UsageError, match=r"features of shape \(60, 4\): these outliers are told by shape \(rows, 8\)"):
        detector.p_values({"one": val[:, :4], "two": val[:, :4]})


def test_unusual_training_rows() -> None:
    for x in (np.ones((50, 3), np.float32), np.zeros((50, 3), np.float32)):
        block = _fit_block(x, np.arange(50) % 2)
        assert np.isfinite(block.standardize(block.distances(x))).all()
    with pytest.raises(UsageError, match="9 training rows are too few to tell outliers: give at least 10"):
        _fit_block(np.ones((9, 3), np.float32))
    one = _fit_block(draw(40, 0)[0], np.arange(40))  # a class each
    assert len(one.centres) == 32
    assert len(_fit_block(draw(40, 0)[0]).centres) == 1


def test_no_second_copy_of_the_rows() -> None:
    x = np.random.default_rng(0).standard_normal((60_000, 128), np.float32)  # 31 MB
    tracemalloc.start()
    try:
        _fit_block(x, np.arange(len(x)) % 10)
        assert tracemalloc.get_traced_memory()[1] < 2.2 * x.nbytes  # pieces of 16 MB
    finally:
        tracemalloc.stop()
