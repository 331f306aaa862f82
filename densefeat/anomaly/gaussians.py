"""PaDiM: a Gaussian of good images at each position, and Mahalanobis distances to it.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", 2020, arXiv 2011.08785.
"""

import numpy as np
import torch
from torch import nn

_DIMS = 100  # of the paper, which takes so many features at random; here they are the first of a random projection
_REGULARIZATION = 0.01  # added to variances (section 3.1)


class PositionGaussians(nn.Module):
    """A Gaussian at each position. ``arrays``: ``mean``, float32 ``(h, w, d)``, and ``whitening``, float32 ``(h, w, d, d)``.

    The Mahalanobis distance of features ``x`` at a position is the length of ``(x - mean) @ whitening``. The features are the
    first d of a grid.
    """

    mean: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, mean: np.ndarray, whitening: np.ndarray) -> None:
        super().__init__()
        self.arrays = {"mean": mean, "whitening": whitening}
        for name, array in self.arrays.items():
            self.register_buffer(name, torch.from_numpy(array))

    def forward(self, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Measure grids, float32 ``(N, D, h, w)``: return scores of images ``(N,)`` and distances of positions ``(N, h, w)``.

        The score of an image is its largest distance.
        """
        dims = self.mean.shape[2]
        values = grid[:, :dims].permute(2, 3, 0, 1) - self.mean[:, :, None]  # (h, w, N, d)
        distances = (values @ self.whitening).norm(dim=3).permute(2, 0, 1)
        return distances.amax((1, 2)), distances


class GaussianSums:
    """Running sums over grids, from which the Gaussians are made without keeping the grids."""

    def __init__(self, dims: int, height: int, width: int) -> None:
        self.dims = min(dims, _DIMS)
        self.count = 0
        self.total = torch.zeros(height, width, self.dims, dtype=torch.float64)
        self.square = torch.zeros(height, width, self.dims, self.dims, dtype=torch.float64)

    def add(self, grid: torch.Tensor) -> None:
        """Add grids ``(N, D, h, w)``."""
        values = grid[:, : self.dims].permute(2, 3, 0, 1).double()
        self.count += values.shape[2]
        self.total += values.sum(2)
        self.square += values.transpose(2, 3) @ values

    def finish(self) -> PositionGaussians:
        """Compute the means and the whitening. At least two images must have been added."""
        mean = self.total / self.count
        covariance = (self.square - self.count * mean[..., :, None] * mean[..., None, :]) / (self.count - 1)
        covariance.diagonal(dim1=2, dim2=3).add_(_REGULARIZATION)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(self.dims, dtype=torch.float64).expand_as(factor)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False).transpose(2, 3)
        return PositionGaussians(mean.float().numpy(), whitening.float().contiguous().numpy())
