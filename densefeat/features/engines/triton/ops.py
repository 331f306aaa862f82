"""Launches of the Triton kernels: maps and weights as the kernels read them, and one function for each kernel."""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from densefeat.features.engines.folded import Conv, Norm, Sum
from densefeat.features.engines.triton import kernels as kernels
from densefeat.features.engines.triton.tuning import TRANSITION_TILE, TUNER, Blocks, power_of_two

_POOLED_TILE = dict(BLOCK_M=32, num_warps=4)
_COMBINED_TILE = dict(BLOCK_M=32, BLOCK_N=64, STEPS=8, num_warps=4)


def _padded(channels: int) -> int:
    return (channels + 15) // 16 * 16


@dataclass(frozen=True)
class Maps:
    """``channels`` of each pixel of ``images`` maps, first in ``rows (images * height * width, …)``."""

    rows: torch.Tensor
    images: int
    height: int
    width: int
    channels: int

    @staticmethod
    def empty(images: int, height: int, width: int, channels: int, like: torch.Tensor) -> "Maps":
        rows = torch.empty(images * height * width, _padded(channels), dtype=like.dtype, device=like.device)
        return Maps(rows, images, height, width, channels)

    @property
    def stride(self) -> int:
        return self.rows.stride(0)

    def part(self, first: int, channels: int) -> "Maps":
        """``channels`` of the same pixels, from ``first``."""
        return Maps(self.rows[:, first : first + channels], self.images, self.height, self.width, channels)

    def nchw(self) -> torch.Tensor:
        """``(N, C, H, W)``, of the same memory."""
        rows = self.rows[:, : self.channels]
        return rows.unflatten(0, (self.images, self.height, self.width)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ScaleShift:
    """``Σ_i scale[i] · x_i + shift`` by channel, ``scale (n, C)``, ``shift (C,)`` in float32, C padded with zeros."""

    scale: torch.Tensor
    shift: torch.Tensor

    @staticmethod
    def of(source: Norm | Sum, device: torch.device) -> "ScaleShift":
        scale, shift = (source.weights, source.bias) if isinstance(source, Sum) else (source.scale[None], source.shift)
        return ScaleShift(*(_widened(values, -1).to(device, torch.float32).contiguous() for values in (scale, shift)))


@dataclass(frozen=True)
class Filters:
    """A convolution's weights ``(taps, C, O)``, C and O padded with zeros, and what follows it; ``bias (O,)`` in float32."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    relu: bool
    channels: int
    outputs: int

    @staticmethod
    def of(conv: Conv, device: torch.device, dtype: torch.dtype) -> "Filters":
        outputs, channels = conv.weight.shape[:2]
        return Filters.by_tap(conv, conv.weight.flatten(2).permute(2, 1, 0), channels, outputs, device, dtype)

    @staticmethod
    def of_stem(conv: Conv, device: torch.device, dtype: torch.dtype) -> "Filters":
        """All values of a window as one tap's channels."""
        taps = conv.weight.flatten(1).T
        return Filters.by_tap(conv, taps[None], len(taps), conv.weight.shape[0], device, dtype)

    @staticmethod
    def by_tap(
        conv: Conv, weight: torch.Tensor, channels: int, outputs: int, device: torch.device, dtype: torch.dtype
    ) -> "Filters":
        bias = None if conv.bias is None else conv.bias.to(device, torch.float32)
        weight = _widened(_widened(weight, -1), -2).to(device, dtype).contiguous()
        return Filters(weight, bias, conv.relu, channels, outputs)


def _widened(values: torch.Tensor, dim: int) -> torch.Tensor:
    """With zeros after a dimension, to a multiple of 16."""
    shape = list(values.shape)
    shape[dim] = _padded(shape[dim]) - shape[dim]
    return torch.cat([values, values.new_zeros(shape)], dim)


def _precision(x: torch.Tensor) -> str:
    """float32 products are of three TF32 ones: float32's accuracy, on the tensor cores."""
    return "tf32x3" if x.dtype == torch.float32 else "ieee"


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    kernel[grid](*arguments, enable_fp_fusion=True, **constants)


def pointwise(
    x: Maps, filters: Filters, out: Maps, affine: ScaleShift | None = None, stack: torch.Tensor | None = None
) -> None:
    """1×1 convolution of ``x``, or of ReLU of its norm ``affine``, or of ReLU of a weighted sum of the first maps of
    ``stack (n, rows, …)``, whose first ``x`` is; to ``out``."""
    inputs = 1 if affine is None else len(affine.scale)
    scale, shift = (x.rows, x.rows) if affine is None else (affine.scale, affine.shift)

    def run(blocks: Blocks) -> None:
        _launch(
            kernels.pointwise,
            (triton.cdiv(len(x.rows), blocks.m) * triton.cdiv(filters.outputs, blocks.n),),
            x.rows, 0 if stack is None else stack.stride(0), inputs, scale, shift, filters.weight, filters.bias, out.rows,
            len(x.rows), filters.channels, x.stride, filters.outputs, out.stride,
            NORM=affine is not None, MANY=inputs > 1, **_after(filters), PRECISION=_precision(x.rows), **blocks.constants,
        )  # fmt: skip

    run(TUNER.blocks("pointwise", x.rows, len(x.rows), filters.channels * inputs, filters.outputs, run))


def _after(filters: Filters) -> dict[str, bool]:
    return dict(RAGGED=filters.channels % 16 != 0, BIAS=filters.bias is not None, RELU=filters.relu)


def conv3x3(x: Maps, filters: Filters, out: Maps, affine: ScaleShift | None = None) -> None:
    """3×3 convolution, stride 1, padding 1, of ``x`` or of ReLU of its norm; to ``out``."""
    scale, shift = (x.rows, x.rows) if affine is None else (affine.scale, affine.shift)

    def run(blocks: Blocks) -> None:
        _launch(
            kernels.conv3x3,
            (triton.cdiv(len(x.rows), blocks.m - 2) * triton.cdiv(filters.outputs, blocks.n),),
            x.rows, scale, shift, filters.weight, filters.bias, out.rows,
            len(x.rows), x.height, x.width, filters.channels, x.stride, filters.outputs, out.stride,
            NORM=affine is not None, **_after(filters), PRECISION=_precision(x.rows), **blocks.constants,
        )  # fmt: skip

    run(TUNER.blocks("conv3x3", x.rows, len(x.rows), filters.channels, filters.outputs, run))


def conv3x3_stride2(x: Maps, filters: Filters, out: Maps) -> None:
    """3×3 convolution, stride 2, padding 1, without bias or ReLU."""

    def run(blocks: Blocks) -> None:
        _launch(
            kernels.conv3x3_stride2,
            (triton.cdiv(len(out.rows), blocks.m) * triton.cdiv(filters.outputs, blocks.n),),
            x.rows, filters.weight, out.rows, len(out.rows), x.height, x.width, out.height, out.width,
            filters.channels, x.stride, filters.outputs, out.stride,
            RAGGED=filters.channels % 16 != 0, PRECISION=_precision(x.rows), **blocks.constants,
        )  # fmt: skip

    run(TUNER.blocks("conv3x3_stride2", x.rows, len(out.rows), filters.channels, filters.outputs, run))


def stem_conv(images: torch.Tensor, offsets: torch.Tensor, filters: Filters, stride: int, out: Maps) -> None:
    """A convolution of padded images ``(N, C, H, W)``; ``offsets`` as the kernel takes them."""

    def run(blocks: Blocks) -> None:
        _launch(
            kernels.stem_conv,
            (triton.cdiv(len(out.rows), blocks.m) * triton.cdiv(filters.outputs, blocks.n),),
            images, offsets, filters.weight, filters.bias, out.rows, len(out.rows), images.stride(0), images.stride(2),
            out.height, out.width, filters.channels, filters.outputs, out.stride,
            STRIDE=stride, BIAS=filters.bias is not None, RELU=filters.relu, PRECISION=_precision(images), **blocks.constants,
        )  # fmt: skip

    run(TUNER.blocks("stem_conv", images, len(out.rows), filters.channels, filters.outputs, run))


def max_pool(x: Maps, out: Maps) -> None:
    """3×3, stride 2, padding 1."""
    block_n = min(64, power_of_two(x.channels))
    _launch(
        kernels.max_pool,
        (triton.cdiv(len(out.rows), _POOLED_TILE["BLOCK_M"]) * triton.cdiv(x.channels, block_n),),
        x.rows, out.rows, len(out.rows), x.height, x.width, out.height, out.width, x.channels, x.stride, out.stride,
        BLOCK_N=block_n, **_POOLED_TILE,
    )  # fmt: skip


def transition(x: Maps, affine: ScaleShift, filters: Filters, out: Maps, mean: str | None) -> torch.Tensor | None:
    """Norm, ReLU, 2×2 average pool, 1×1 convolution to ``out``; with ``mean`` "norm" or "raw" what ``combine`` would give."""
    cells = triton.cdiv(x.height, 2) * triton.cdiv(x.width, 2)
    tiles = triton.cdiv(cells, TRANSITION_TILE)
    partial = torch.empty(x.images, tiles, x.channels, device=x.rows.device)

    def run(blocks: Blocks) -> None:
        _launch(
            kernels.transition,
            (x.images * tiles * triton.cdiv(filters.outputs, blocks.n),),
            x.rows, affine.scale, affine.shift, filters.weight, out.rows, partial, tiles,
            x.height, x.width, filters.channels, x.stride, filters.outputs, out.stride, 1 / (x.height * x.width),
            MEAN=mean, RAGGED=filters.channels % 16 != 0, PRECISION=_precision(x.rows), **blocks.constants,
        )  # fmt: skip

    run(TUNER.blocks("transition", x.rows, len(x.rows), filters.channels, filters.outputs, run))
    return _added(partial) if mean is not None else None


def combine(
    x: Maps, affine: ScaleShift | None, relu: bool, out: Maps | None, mean: bool, stack: torch.Tensor | None = None
) -> torch.Tensor | None:
    """``x``, its norm, or the weighted sum of the maps of ``stack``, whose first ``x`` is: to ``out`` where given, and its
    mean over pixels, ``(images, channels)`` in float32, where ``mean``."""
    pixels = x.height * x.width
    parts = triton.cdiv(pixels, _COMBINED_TILE["BLOCK_M"] * _COMBINED_TILE["STEPS"])
    partial = torch.empty(x.images, parts, x.channels, device=x.rows.device)
    scale, shift = (x.rows, x.rows) if affine is None else (affine.scale, affine.shift)
    inputs = 1 if affine is None else len(affine.scale)
    _launch(
        kernels.combine,
        (x.images * parts * triton.cdiv(x.channels, _COMBINED_TILE["BLOCK_N"]),),
        x.rows, 0 if stack is None else stack.stride(0), inputs, scale, shift, x.rows if out is None else out.rows, partial,
        parts, pixels, x.channels, x.stride, x.stride if out is None else out.stride, 1 / pixels,
        NORM=affine is not None, MANY=inputs > 1, RELU=relu, MAPS=out is not None, MEAN=mean, **_COMBINED_TILE,
    )  # fmt: skip
    return _added(partial) if mean else None


def _added(partial: torch.Tensor) -> torch.Tensor:
    """``(images, parts, channels)`` to ``(images, channels)``: in one order whatever the batch, as torch's sum is not."""
    images, parts, channels = partial.shape
    if parts == 1:
        return partial[:, 0]
    mean = torch.empty(images, channels, device=partial.device)
    _launch(kernels.add_parts, (images * triton.cdiv(channels, 128),), partial, mean, parts, channels, BLOCK_N=128)
    return mean
