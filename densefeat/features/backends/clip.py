"""BatchNorm and ReLU in one pass over a map, where something linear follows."""

import torch

from densefeat.features.backends.folded import Conv, Norm

NEGLIGIBLE = 1e-30  # of a channel's shift: a scale below leaves a constant


class Clip:
    """``relu(x · scale + shift)`` as ``clip(x) · self.scale + self.shift``, for each of C channels.

    ReLU's threshold is moved to the input: where ``scale`` is positive, ``clip(x) = max(x, -shift / scale)``, where it is
    negative, the minimum. So one elementwise operation reads the map, and the affine map is left to the convolution or mean
    that follows, which it costs nothing. ``self.shift`` cancels the threshold as it was rounded to ``dtype``: what ReLU
    switches off is exactly off.
    """

    def __init__(self, norm: Norm, dtype: torch.dtype) -> None:
        dead = norm.scale.abs() <= NEGLIGIBLE * norm.shift.abs().clamp(min=1)
        scale = norm.scale.masked_fill(dead, 1)
        threshold = (-norm.shift / scale).masked_fill(dead, 0).to(dtype)
        self.scale = norm.scale.masked_fill(dead, 0)
        self.shift = torch.where(dead, norm.shift.relu(), -self.scale * threshold.double())
        falling = self.scale < 0
        self.lowest = threshold.masked_fill(falling, -torch.inf).view(1, -1, 1, 1)
        self.highest = threshold.masked_fill(~falling, torch.inf).view(1, -1, 1, 1) if falling.any() else None

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` to ``out``, of the same shape."""
        if self.highest is None:
            return torch.maximum(x, self.lowest, out=out)
        return torch.clamp(x, self.lowest, self.highest, out=out)

    def folded_into(self, conv: Conv) -> Conv:
        """The convolution, without padding, that reads ``clip(x)`` and gives what ``conv`` gives of the ReLU's output."""
        assert conv.padding == 0
        weight = conv.weight * self.scale[:, None, None]
        bias = torch.einsum("oikl,i->o", conv.weight, self.shift)
        return Conv(weight, bias if conv.bias is None else conv.bias + bias, conv.stride, conv.padding, conv.relu)
