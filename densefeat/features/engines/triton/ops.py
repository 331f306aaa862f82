"""Launches of the Triton kernels: the maps and weights that they read, and one function for each kernel."""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from densefeat.features.engines.folded import FoldedConv, FoldedNorm, FoldedSum
from densefeat.features.engines.triton import kernels
from densefeat.features.engines.triton.tuning import TRANSITION_TILE, TUNER, Tile, round_up_to_power

_MAX_POOL_TILE = dict(BLOCK_M=32, num_warps=4)
_COMBINE_TILE = dict(BLOCK_M=32, BLOCK_N=64, STEPS=8, num_warps=4)


def _round_up_to_16(channels: int) -> int:
    return (channels + 15) // 16 * 16


@dataclass(frozen=True)
class PixelRows:
    """A batch of maps with one pixel a row, ``rows (images * height * width, …)``.

    A row begins with the pixel's ``channels``.
    """

    rows: torch.Tensor
    images: int
    height: int
    width: int
    channels: int

    @staticmethod
    def empty(images: int, height: int, width: int, channels: int, like: torch.Tensor) -> "PixelRows":
        rows = torch.empty(images * height * width, _round_up_to_16(channels), dtype=like.dtype, device=like.device)
        return PixelRows(rows, images, height, width, channels)

    @property
    def stride(self) -> int:
        return self.rows.stride(0)

    def slice_channels(self, first: int, channels: int) -> "PixelRows":
        """View ``channels`` channels of the same pixels, from channel ``first`` on."""
        return PixelRows(self.rows[:, first : first + channels], self.images, self.height, self.width, channels)

    def nchw(self) -> torch.Tensor:
        """View the maps as ``(N, C, H, W)``."""
        rows = self.rows[:, : self.channels]
        return rows.unflatten(0, (self.images, self.height, self.width)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ScaleShift:
    """A norm or a weighted sum: ``Σ_i scale[i] · x_i + shift``.

    ``scale (n, C)`` and ``shift (C,)`` are float32, C padded with zeros.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    @staticmethod
    def from_folded(layer: FoldedNorm | FoldedSum, device: torch.device) -> "ScaleShift":
        scale, shift = (layer.weights, layer.bias) if isinstance(layer, FoldedSum) else (layer.scale[None], layer.shift)
        return ScaleShift(*(_pad_to_16(values, -1).to(device, torch.float32).contiguous() for values in (scale, shift)))


@dataclass(frozen=True)
class Filters:
    """A convolution with ``weight (taps, C, O)``, C and O padded with zeros, ``bias (O,)``, float32, and ReLU if ``relu``."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    relu: bool
    channels: int
    outputs: int

    @staticmethod
    def from_conv(conv: FoldedConv, device: torch.device, dtype: torch.dtype) -> "Filters":
        outputs, channels = conv.weight.shape[:2]
        return Filters._from_taps(conv, conv.weight.flatten(2).permute(2, 1, 0), channels, outputs, device, dtype)

    @staticmethod
    def from_stem(conv: FoldedConv, device: torch.device, dtype: torch.dtype) -> "Filters":
        """Treat all values of a window as the channels of a single tap."""
        taps = conv.weight.flatten(1).T
        return Filters._from_taps(conv, taps[None], len(taps), conv.weight.shape[0], device, dtype)

    @staticmethod
    def _from_taps(
        conv: FoldedConv, weight: torch.Tensor, channels: int, outputs: int, device: torch.device, dtype: torch.dtype
    ) -> "Filters":
        bias = None if conv.bias is None else conv.bias.to(device, torch.float32)
        weight = _pad_to_16(_pad_to_16(weight, -1), -2).to(device, dtype).contiguous()
        return Filters(weight, bias, conv.relu, channels, outputs)


def _pad_to_16(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Append zeros along a dimension, up to a multiple of 16."""
    shape = list(values.shape)
    shape[dim] = _round_up_to_16(shape[dim]) - shape[dim]
    return torch.cat([values, values.new_zeros(shape)], dim)


def _choose_dot_precision(x: torch.Tensor) -> str:
    """Compute float32 products from three TF32 products: as accurate as float32, but on the tensor cores."""
    return "tf32x3" if x.dtype == torch.float32 else "ieee"


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    kernel[grid](*arguments, enable_fp_fusion=True, **constants)


def pointwise(
    x: PixelRows, filters: Filters, out: PixelRows, norm: ScaleShift | None = None, stack: torch.Tensor | None = None
) -> None:
    """Convolve 1×1 from ``x`` to ``out``.

    With ``norm``, it and ReLU are applied to ``x`` first. With ``stack (n, rows, …)``, whose first maps are ``x``, ``norm`` is
    a weighted sum of as many of its maps as it has scales for.
    """
    inputs = 1 if norm is None else len(norm.scale)
    scale, shift = (x.rows, x.rows) if norm is None else (norm.scale, norm.shift)

    def run(tile: Tile) -> None:
        _launch(
            kernels.pointwise,
            (triton.cdiv(len(x.rows), tile.m) * triton.cdiv(filters.outputs, tile.n),),
            x.rows, 0 if stack is None else stack.stride(0), inputs, scale, shift, filters.weight, filters.bias, out.rows,
            len(x.rows), filters.channels, x.stride, filters.outputs, out.stride,
            NORM=norm is not None, MANY=inputs > 1, **_epilogue_flags(filters),
            PRECISION=_choose_dot_precision(x.rows), **tile.constants,
        )  # fmt: skip

    run(TUNER.choose_tile("pointwise", x.rows, len(x.rows), filters.channels * inputs, filters.outputs, run))


def _epilogue_flags(filters: Filters) -> dict[str, bool]:
    return dict(RAGGED=filters.channels % 16 != 0, BIAS=filters.bias is not None, RELU=filters.relu)


def conv3x3(x: PixelRows, filters: Filters, out: PixelRows, norm: ScaleShift | None = None) -> None:
    """Convolve 3×3, stride 1, padding 1, from ``x``, with ``norm`` from ReLU of its norm, to ``out``."""
    scale, shift = (x.rows, x.rows) if norm is None else (norm.scale, norm.shift)

    def run(tile: Tile) -> None:
        _launch(
            kernels.conv3x3,
            (triton.cdiv(len(x.rows), tile.m - 2) * triton.cdiv(filters.outputs, tile.n),),
            x.rows, scale, shift, filters.weight, filters.bias, out.rows,
            len(x.rows), x.height, x.width, filters.channels, x.stride, filters.outputs, out.stride,
            NORM=norm is not None, **_epilogue_flags(filters), PRECISION=_choose_dot_precision(x.rows), **tile.constants,
        )  # fmt: skip

    run(TUNER.choose_tile("conv3x3", x.rows, len(x.rows), filters.channels, filters.outputs, run))


def conv3x3_stride2(x: PixelRows, filters: Filters, out: PixelRows) -> None:
    """Convolve 3×3, stride 2, padding 1, without bias or ReLU."""

    def run(tile: Tile) -> None:
        _launch(
            kernels.conv3x3_stride2,
            (triton.cdiv(len(out.rows), tile.m) * triton.cdiv(filters.outputs, tile.n),),
            x.rows, filters.weight, out.rows, len(out.rows), x.height, x.width, out.height, out.width,
            filters.channels, x.stride, filters.outputs, out.stride,
            RAGGED=filters.channels % 16 != 0, PRECISION=_choose_dot_precision(x.rows), **tile.constants,
        )  # fmt: skip

    run(TUNER.choose_tile("conv3x3_stride2", x.rows, len(out.rows), filters.channels, filters.outputs, run))


def stem_conv(images: torch.Tensor, offsets: torch.Tensor, filters: Filters, stride: int, out: PixelRows) -> None:
    """Convolve padded images ``(N, C, H, W)``, as :class:`PaddedImages` describes them with their ``offsets``."""

    def run(tile: Tile) -> None:
        _launch(
            kernels.stem_conv,
            (triton.cdiv(len(out.rows), tile.m) * triton.cdiv(filters.outputs, tile.n),),
            images, offsets, filters.weight, filters.bias, out.rows, len(out.rows), images.stride(0), images.stride(2),
            out.height, out.width, filters.channels, filters.outputs, out.stride,
            STRIDE=stride, BIAS=filters.bias is not None, RELU=filters.relu,
            PRECISION=_choose_dot_precision(images), **tile.constants,
        )  # fmt: skip

    run(TUNER.choose_tile("stem_conv", images, len(out.rows), filters.channels, filters.outputs, run))


def max_pool(x: PixelRows, out: PixelRows) -> None:
    """Pool 3×3 maxima, stride 2, padding 1."""
    block_n = min(64, round_up_to_power(x.channels))
    _launch(
        kernels.max_pool,
        (triton.cdiv(len(out.rows), _MAX_POOL_TILE["BLOCK_M"]) * triton.cdiv(x.channels, block_n),),
        x.rows, out.rows, len(out.rows), x.height, x.width, out.height, out.width, x.channels, x.stride, out.stride,
        BLOCK_N=block_n, **_MAX_POOL_TILE,
    )  # fmt: skip


def transition(x: PixelRows, norm: ScaleShift, filters: Filters, out: PixelRows, mean: str | None) -> torch.Tensor | None:
    """Apply norm, ReLU, a 2×2 average pool and a 1×1 convolution, from ``x`` to ``out``.

    With ``mean`` "norm" or "raw", return the mean of ``x`` over the pixels after or before norm and ReLU, as ``combine`` does.
    """
    cells = triton.cdiv(x.height, 2) * triton.cdiv(x.width, 2)
    tiles = triton.cdiv(cells, TRANSITION_TILE)
    partial = torch.empty(x.images, tiles, x.channels, device=x.rows.device)

    def run(tile: Tile) -> None:
        _launch(
            kernels.transition,
            (x.images * tiles * triton.cdiv(filters.outputs, tile.n),),
            x.rows, norm.scale, norm.shift, filters.weight, out.rows, partial, tiles,
            x.height, x.width, filters.channels, x.stride, filters.outputs, out.stride, 1 / (x.height * x.width),
            MEAN=mean, RAGGED=filters.channels % 16 != 0, PRECISION=_choose_dot_precision(x.rows), **tile.constants,
        )  # fmt: skip

    run(TUNER.choose_tile("transition", x.rows, len(x.rows), filters.channels, filters.outputs, run))
    return _sum_parts(partial) if mean is not None else None


def combine(
    x: PixelRows, norm: ScaleShift | None, relu: bool, out: PixelRows | None, mean: bool, stack: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Compute ``x``, with ``norm`` its norm, or with ``stack``, whose first maps are ``x``, the weighted sum of its maps.

    It is written to ``out`` if there is one; with ``mean`` its mean over the pixels is returned, ``(images, channels)``,
    float32.
    """
    pixels = x.height * x.width
    parts = triton.cdiv(pixels, _COMBINE_TILE["BLOCK_M"] * _COMBINE_TILE["STEPS"])
    partial = torch.empty(x.images, parts, x.channels, device=x.rows.device)
    scale, shift = (x.rows, x.rows) if norm is None else (norm.scale, norm.shift)
    inputs = 1 if norm is None else len(norm.scale)
    _launch(
        kernels.combine,
        (x.images * parts * triton.cdiv(x.channels, _COMBINE_TILE["BLOCK_N"]),),
        x.rows, 0 if stack is None else stack.stride(0), inputs, scale, shift, x.rows if out is None else out.rows, partial,
        parts, pixels, x.channels, x.stride, x.stride if out is None else out.stride, 1 / pixels,
        NORM=norm is not None, MANY=inputs > 1, RELU=relu, MAPS=out is not None, MEAN=mean, **_COMBINE_TILE,
    )  # fmt: skip
    return _sum_parts(partial) if mean else None


def _sum_parts(partial: torch.Tensor) -> torch.Tensor:
    """Sum ``(images, parts, channels)`` over the parts, in an order that does not depend on the batch as torch's sum does."""
    images, parts, channels = partial.shape
    if parts == 1:
        return partial[:, 0]
    mean = torch.empty(images, channels, device=partial.device)
    _launch(kernels.add_parts, (images * triton.cdiv(channels, 128),), partial, mean, parts, channels, BLOCK_N=128)
    return mean
