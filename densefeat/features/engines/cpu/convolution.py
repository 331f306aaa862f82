"""A folded convolution as oneDNN runs it best: weights packed once, bias and ReLU within."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from densefeat.features.engines.folded import Conv

_ONEDNN = torch.ops.mkldnn  # what torch.compile calls, too
Convolution = Callable[[torch.Tensor], torch.Tensor]


def convolution(conv: Conv, dtype: torch.dtype, groups: int = 1) -> Convolution:
    """A function of maps ``(N, I, H, W)`` in channels_last order, of ``dtype``, to ``(N, O, H', W')`` in the same order."""
    return PackedConvolution(conv, dtype, groups) if _has_onednn(dtype) else PlainConvolution(conv, dtype, groups)


def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN here, for this type."""
    return torch.backends.mkldnn.is_available() and (dtype == torch.float32 or _ONEDNN._is_mkldnn_bf16_supported())


class PackedConvolution:
    def __init__(self, conv: Conv, dtype: torch.dtype, groups: int) -> None:
        self.stride, self.padding = [conv.stride] * 2, [conv.padding] * 2
        weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.weight = _ONEDNN._reorder_convolution_weight(weight, self.padding, self.stride, [1, 1], groups)
        self.groups = groups
        self.bias = None if conv.bias is None else conv.bias.float()  # beside bfloat16, too
        self.activation = "relu" if conv.relu else "none"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _ONEDNN._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, [1, 1], self.groups, self.activation, [], ""
        )


class PlainConvolution:
    """By torch's own means, where there is no oneDNN."""

    def __init__(self, conv: Conv, dtype: torch.dtype, groups: int) -> None:
        self.weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.to(dtype)
        self.stride, self.padding, self.groups, self.relu = conv.stride, conv.padding, groups, conv.relu

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return y.relu_() if self.relu else y
