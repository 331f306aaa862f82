"""BatchNorm and ReLU in one pass over a map, where something linear follows."""

import torch

from densefeat.features.engines.cpu.memory import spatial_mean
from densefeat.features.engines.folded import Conv, Norm

_NEGLIGIBLE = 1e-30  # of a channel's shift: a scale below leaves a constant


class Clip:
    """``relu(x · scale + shift)`` for each of C channels, in two steps: ``clip(x)``, and a linear map of that.

    ReLU's threshold is moved to the input: where ``scale`` is positive, ``clip(x) = max(x, threshold)`` with ``threshold =
    -shift / scale``; where it is negative, the minimum. One elementwise operation reads the map. What is left, ``(clip(x) -
    threshold) · scale``, is linear: a convolution or a mean that follows takes it in. A channel of scale 0 is a ``constant``.
    """

    def __init__(self, norm: Norm, dtype: torch.dtype) -> None:
        self.dtype = dtype
        dead = norm.scale.abs() <= _NEGLIGIBLE * norm.shift.abs().clamp(min=1)
        self.threshold = (-norm.shift / norm.scale.masked_fill(dead, 1)).masked_fill(dead, 0).to(dtype).double()
        self.scale = norm.scale.masked_fill(dead, 0)
        self.constant = norm.shift.relu() * dead
        falling = self.scale < 0
        self.lowest = self.threshold.masked_fill(falling, -torch.inf).to(dtype).view(1, -1, 1, 1)
        self.highest: torch.Tensor | None = None
        if falling.any():
            self.highest = self.threshold.masked_fill(~falling, torch.inf).to(dtype).view(1, -1, 1, 1)

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` to ``out``, of the same shape."""
        if self.highest is None:
            return torch.maximum(x, self.lowest, out=out)
        return torch.clamp(x, self.lowest, self.highest, out=out)

    def mean(self, clipped: torch.Tensor) -> torch.Tensor:
        """Of the ReLU's output, from ``clip(x)``, ``(N, C, H, W)`` to ``(N, C)``: the threshold goes first, so that 0 is 0."""
        excess = clipped.float() - self.threshold.float().view(1, -1, 1, 1)
        return spatial_mean(excess) * self.scale.float() + self.constant.float()

    def folded_into(self, conv: Conv) -> Conv:
        """The 1×1 convolution that reads ``clip(x)`` and gives what ``conv`` gives of the ReLU's output.

        Its bias takes the thresholds off as its weights, rounded to ``dtype``, will have multiplied them.
        """
        assert conv.weight.shape[2:] == (1, 1)
        weight = (conv.weight * self.scale[:, None, None]).to(self.dtype).double()
        bias = torch.einsum("oikl,i->o", conv.weight, self.constant) - torch.einsum("oikl,i->o", weight, self.threshold)
        return Conv(weight, bias if conv.bias is None else conv.bias + bias, conv.stride, conv.padding, conv.relu)
