"""The test for outliers of :mod:`densefeat.certainty` as a module."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from densefeat.certainty import TINY, BlockDistances, OutlierDetector
from densefeat.errors import WeightsError


class OutlierModule(nn.Module):
    """A detector: from columns by name, each as a whole, ``(N, D)``, to p-values ``(N,)``, float32.

    Maps ``(N, D, H, W)``, which an attentive head reads, are averaged.

    Raises WeightsError for a detector of other columns.
    """

    validation: torch.Tensor

    def __init__(self, detector: OutlierDetector, widths: Mapping[str, int]) -> None:
        super().__init__()
        for name, block in detector.blocks.items():
            if len(block.mean) != widths.get(name):
                raise WeightsError(f"the probe tells outliers by {len(block.mean)} features of {name}: its network has others")
        self.names = list(detector.blocks)
        self.blocks = nn.ModuleList(map(_Distances, detector.blocks.values()))
        self.register_buffer("validation", _to_tensor(detector.validation))

    def forward(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        scores = [block(_average(columns[name])) for name, block in zip(self.names, self.blocks, strict=True)]
        statistic = torch.cat(scores, 1).mean(1, keepdim=True)
        higher = (self.validation >= statistic).float().sum(1)
        return (1 + higher) / (len(self.validation) + 1)


class _Distances(nn.Module):
    """The standardised distances of one block: ``(N, D)`` to ``(N, 2)``."""

    mean: torch.Tensor
    whitening: torch.Tensor
    centres: torch.Tensor
    bank: torch.Tensor
    location: torch.Tensor
    scale: torch.Tensor

    def __init__(self, block: BlockDistances) -> None:
        super().__init__()
        self.k = block.k
        for name in ("mean", "whitening", "centres", "location", "scale"):
            self.register_buffer(name, _to_tensor(getattr(block, name)))
        self.register_buffer("bank", _to_tensor(block.unit_bank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = (x - self.mean) @ self.whitening
        squares = values.square().sum(1, keepdim=True) - 2 * values @ self.centres.T + self.centres.square().sum(1)
        length = x.square().sum(1, keepdim=True).sqrt()
        cosines = x / torch.where(length > 0, length, 1.0) @ self.bank.T
        distances = torch.stack([squares.amin(1).clamp(min=0).sqrt(), 1 - cosines.topk(self.k).values[:, -1]], 1)
        return (distances.clamp(min=TINY).log() - self.location) / self.scale


def _average(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3)) if x.ndim == 4 else x


def _to_tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
