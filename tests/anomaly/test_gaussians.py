"""Distances against scipy's, with means and covariances of numpy."""

import numpy as np
import torch
from scipy.spatial.distance import mahalanobis

from densefeat.anomaly.gaussians import GaussianSums


def test_mahalanobis_distances() -> None:
    generator = np.random.default_rng(0)
    learnt = generator.normal(3, 2, (40, 6, 2, 3)).astype(np.float32)
    learnt[:, 1] += learnt[:, 0]
    new = generator.normal(3, 2, (5, 6, 2, 3)).astype(np.float32)
    sums = GaussianSums(6, 2, 3)
    for start in range(0, 40, 7):
        sums.add(torch.from_numpy(learnt[start : start + 7]))
    scores, distances = sums.finish()(torch.from_numpy(new))
    for row, i, j in np.ndindex(5, 2, 3):
        covariance = np.cov(learnt[:, :, i, j].astype(np.float64).T) + 0.01 * np.eye(6)
        expected = mahalanobis(new[row, :, i, j], learnt[:, :, i, j].mean(0), np.linalg.inv(covariance))
        np.testing.assert_allclose(float(distances[row, i, j]), expected, rtol=1e-4)
    assert torch.equal(scores, distances.amax((1, 2)))


def test_fewer_images_than_features() -> None:
    """The first 100 features are read, and the covariance of two images can be inverted."""
    grids = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 130, 2, 2)).astype(np.float32))
    sums = GaussianSums(130, 2, 2)
    sums.add(grids)
    normal = sums.finish()
    assert normal.whitening.shape == (2, 2, 100, 100)
    _, distances = normal(grids)
    _, far = normal(grids + 1)
    assert distances.max() < 1
    assert far.min() > 5
