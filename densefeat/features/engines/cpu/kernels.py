"""The operations and the memory of the CPU engine. All maps ``(N, C, H, W)`` lie in channels_last order."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from densefeat.features.engines.folded import FoldedConv, FoldedNorm

_GROUP_BYTES = 7 * 2**20  # more bytes do not fit the caches; fewer images do not keep the cores busy
_NEGLIGIBLE = 1e-30  # relative to a channel's shift: a smaller scale leaves a constant
_ONEDNN = torch.ops.mkldnn  # the operators that torch.compile calls
Convolution = Callable[[torch.Tensor], torch.Tensor]


class Workspace:
    """A set of named storages of one type that every pass reuses, so that no pass allocates large maps."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.storages: dict[str, torch.Tensor] = {}

    def maps(self, name: str, n: int, channels: int, height: int, width: int) -> torch.Tensor:
        """Return uninitialised maps ``(n, channels, height, width)``. They overwrite the previous maps of the same name."""
        elements = n * channels * height * width
        if name not in self.storages or self.storages[name].numel() < elements:
            self.storages[name] = torch.empty(elements, dtype=self.dtype)
        return self.storages[name][:elements].view(n, height, width, channels).permute(0, 3, 1, 2)

    def maps_like(self, name: str, maps: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = maps.shape
        return self.maps(name, n, channels, height, width)

    def release(self, limit: int) -> None:
        """Free all storages if they hold more than ``limit`` bytes, so that one large image does not occupy them for ever."""
        if sum(storage.nbytes for storage in self.storages.values()) > limit:
            self.storages.clear()


def split_for_cache(maps: torch.Tensor, channels: int) -> tuple[torch.Tensor, ...]:
    """Split maps into groups of images: as many images as fill ``_GROUP_BYTES`` with that many channels."""
    image_bytes = channels * maps.shape[2] * maps.shape[3] * maps.element_size()
    return maps.split(max(1, _GROUP_BYTES // max(1, image_bytes)))


def spatial_mean(maps: torch.Tensor) -> torch.Tensor:
    """Average ``(N, C, H, W)`` over the pixels to ``(N, C)``, summed in float32."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2).mean(1, dtype=torch.float32)


def make_convolution(conv: FoldedConv, dtype: torch.dtype, groups: int = 1) -> Convolution:
    """Make a function of maps ``(N, I, H, W)`` of ``dtype`` that returns ``(N, O, H', W')``."""
    return PackedConvolution(conv, dtype, groups) if _has_onednn(dtype) else PlainConvolution(conv, dtype, groups)


def _has_onednn(dtype: torch.dtype) -> bool:
    """Check whether torch has oneDNN on this processor, for this type."""
    return torch.backends.mkldnn.is_available() and (dtype == torch.float32 or _ONEDNN._is_mkldnn_bf16_supported())


class PackedConvolution:
    """A convolution of oneDNN that includes bias and ReLU and whose weights are packed once."""

    def __init__(self, conv: FoldedConv, dtype: torch.dtype, groups: int) -> None:
        self.stride, self.padding = [conv.stride] * 2, [conv.padding] * 2
        weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.weight = _ONEDNN._reorder_convolution_weight(weight, self.padding, self.stride, [1, 1], groups)
        self.groups = groups
        self.bias = None if conv.bias is None else conv.bias.float()  # oneDNN takes float32 beside bfloat16 weights too
        self.activation = "relu" if conv.relu else "none"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _ONEDNN._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, [1, 1], self.groups, self.activation, [], ""
        )


class PlainConvolution:
    """A convolution by torch's public function, for processors without oneDNN."""

    def __init__(self, conv: FoldedConv, dtype: torch.dtype, groups: int) -> None:
        self.weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.to(dtype)
        self.stride, self.padding, self.groups, self.relu = conv.stride, conv.padding, groups, conv.relu

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return y.relu_() if self.relu else y


class NormReLU:
    """A BatchNorm and ReLU: ``relu(x · scale + shift)`` for each of C channels."""

    def __init__(self, norm: FoldedNorm, dtype: torch.dtype) -> None:
        self.scale, self.shift = (values.to(dtype).view(1, -1, 1, 1) for values in (norm.scale, norm.shift))

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``out`` of the same shape."""
        return torch.addcmul(self.shift, x, self.scale, out=out).relu_()


class Clip:
    """A BatchNorm and ReLU in one pass over a map, for use where something linear follows.

    ``relu(x · scale + shift)`` is computed in two steps. ReLU's threshold moves to the input: where ``scale`` is positive,
    ``clip(x) = max(x, threshold)`` with ``threshold = -shift / scale``; where it is negative, the minimum. This one
    elementwise operation reads the map. The rest, ``(clip(x) - threshold) · scale``, is linear: the convolution or mean that
    follows includes it. A channel of scale 0 is a ``constant``.
    """

    def __init__(self, norm: FoldedNorm, dtype: torch.dtype) -> None:
        self.dtype = dtype
        dead = norm.scale.abs() <= _NEGLIGIBLE * norm.shift.abs().clamp(min=1)
        self.threshold = (-norm.shift / norm.scale.masked_fill(dead, 1)).masked_fill(dead, 0).to(dtype).double()
        self.scale = norm.scale.masked_fill(dead, 0)
        self.constant = norm.shift.relu() * dead
        negative = self.scale < 0
        self.lowest = self.threshold.masked_fill(negative, -torch.inf).to(dtype).view(1, -1, 1, 1)
        self.highest: torch.Tensor | None = None
        if negative.any():
            self.highest = self.threshold.masked_fill(~negative, torch.inf).to(dtype).view(1, -1, 1, 1)

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W)`` to ``out`` of the same shape."""
        if self.highest is None:
            return torch.maximum(x, self.lowest, out=out)
        return torch.clamp(x, self.lowest, self.highest, out=out)

    def mean(self, clipped: torch.Tensor) -> torch.Tensor:
        """Average the ReLU's output over the pixels, ``(N, C)``, from ``clip(x) (N, C, H, W)``.

        The threshold is subtracted before the sum, so that a map that ReLU switches off has a mean of exactly 0.
        """
        excess = clipped.float() - self.threshold.float().view(1, -1, 1, 1)
        return spatial_mean(excess) * self.scale.float() + self.constant.float()

    def fold_into(self, conv: FoldedConv) -> FoldedConv:
        """Return the 1×1 convolution of ``clip(x)`` that equals ``conv`` of the ReLU's output.

        Its bias subtracts the thresholds times the weights rounded to ``dtype``, by which they will have been multiplied.
        """
        assert conv.weight.shape[2:] == (1, 1)
        weight = (conv.weight * self.scale[:, None, None]).to(self.dtype).double()
        bias = torch.einsum("oikl,i->o", conv.weight, self.constant) - torch.einsum("oikl,i->o", weight, self.threshold)
        return FoldedConv(weight, bias if conv.bias is None else conv.bias + bias, conv.stride, conv.padding, conv.relu)
