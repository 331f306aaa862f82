"""A network as inference sees it: in eval mode a BatchNorm is an affine map, which is folded into the convolution before it.

Every engine is built from these dataclasses. All tensors are detached copies in float64 on the CPU, so that an engine rounds
only once, to the type it computes in.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from densefeat.features.engines.foldable import check_foldable
from densefeat.nets import DelugeBlock, DenseBlock, DenseNet


@dataclass(frozen=True)
class FoldedNorm:
    """A BatchNorm in eval mode: ``x * scale + shift`` for each channel ``(C,)``."""

    scale: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True)
class FoldedConv:
    """A convolution with ``weight (O, I, kH, kW)``, then ``bias (O,)`` if there is one, then ReLU if ``relu``."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: int
    padding: int
    relu: bool


@dataclass(frozen=True)
class FoldedStem:
    """A convolution, then if ``pool`` a 3×3 max pool with stride 2 and padding 1."""

    conv: FoldedConv
    pool: bool


@dataclass(frozen=True)
class FoldedDenseLayer:
    """A layer of a dense block: ``norm`` and ReLU of all channels so far, then ``convs``.

    These are a 1×1 convolution with ReLU (the bottleneck) and a 3×3 convolution, or a 3×3 convolution alone.
    """

    norm: FoldedNorm
    convs: tuple[FoldedConv, ...]


@dataclass(frozen=True)
class FoldedDenseBlock:
    """A dense block with the ``norm`` and ReLU that read it, and the ``transition`` after these (None after the last block).

    A transition is a 1×1 convolution, then a 2×2 average pool. The two commute: engines may pool first, which leaves a
    quarter of the arithmetic.
    """

    layers: tuple[FoldedDenseLayer, ...]
    norm: FoldedNorm
    transition: FoldedConv | None


@dataclass(frozen=True)
class FoldedSum:
    """A cross-layer depthwise layer with all its norms: ``Σ_i weights[i, c] · x_i[c] + bias[c]``, ``weights (n, C)``."""

    weights: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class FoldedCompositeLayer:
    """A composite layer of a DelugeNet: ReLU of the ``aggregate`` of all outputs so far, then ``convs``.

    These are a 1×1 and a 3×3 convolution, both with ReLU, and a 1×1 convolution without.
    """

    aggregate: FoldedSum
    convs: tuple[FoldedConv, ...]


@dataclass(frozen=True)
class FoldedDelugeBlock:
    """A DelugeNet block: ``opener`` makes the first output and each layer one more; the next block reads their ``aggregate``.

    ``relu``: whether a ReLU follows the aggregate, as it does after the last block.
    """

    opener: FoldedConv | FoldedCompositeLayer
    layers: tuple[FoldedCompositeLayer, ...]
    aggregate: FoldedSum
    relu: bool


@dataclass(frozen=True)
class FoldedNetwork:
    """A stem and its blocks, which are all of one kind."""

    stem: FoldedStem
    blocks: tuple[FoldedDenseBlock | FoldedDelugeBlock, ...]


def fold_network(model: nn.Module) -> FoldedNetwork:
    """Fold a DenseNet or DelugeNet, from its current parameters and statistics.

    Raises:
        NotFoldable: The network has parts that engines do not know.
    """
    check_foldable(model)
    features: Any = model.features
    if isinstance(model, DenseNet):
        return FoldedNetwork(_fold_stem(features), tuple(_fold_dense_blocks(features)))
    return FoldedNetwork(_fold_stem(features), tuple(_fold_deluge_blocks(features)))


def _fold_stem(features: Any) -> FoldedStem:
    if hasattr(features, "norm0"):
        return FoldedStem(_fold_conv(features.conv0, _fold_norm(features.norm0), relu=True), pool=True)
    return FoldedStem(_fold_conv(features.conv0), pool=False)


def _fold_dense_blocks(features: Any) -> Iterable[FoldedDenseBlock]:
    count = sum(isinstance(module, DenseBlock) for module in features.children())
    for i in range(1, count + 1):
        layers = tuple(_fold_dense_layer(layer) for layer in features.get_submodule(f"denseblock{i}").children())
        if i == count:
            yield FoldedDenseBlock(layers, _fold_norm(features.norm5), None)
        else:
            transition = features.get_submodule(f"transition{i}")
            yield FoldedDenseBlock(layers, _fold_norm(transition.norm), _fold_conv(transition.conv))


def _fold_dense_layer(layer: Any) -> FoldedDenseLayer:
    if not layer.bottleneck:
        return FoldedDenseLayer(_fold_norm(layer.norm1), (_fold_conv(layer.conv1),))
    bottleneck = _fold_conv(layer.conv1, _fold_norm(layer.norm2), relu=True)
    return FoldedDenseLayer(_fold_norm(layer.norm1), (bottleneck, _fold_conv(layer.conv2)))


def _fold_deluge_blocks(features: Any) -> Iterable[FoldedDelugeBlock]:
    blocks = [module for module in features.children() if isinstance(module, DelugeBlock)]
    for block in blocks:
        opener = block.opener
        first = _fold_conv(opener) if isinstance(opener, nn.Conv2d) else _fold_opening_layer(opener)
        layers = tuple(
            FoldedCompositeLayer(_fold_sum(layer.aggregate), _fold_bottleneck(layer.bottleneck)) for layer in block.layers
        )
        yield FoldedDelugeBlock(first, layers, _fold_sum(block.aggregate), relu=block is blocks[-1])


def _fold_opening_layer(layer: Any) -> FoldedCompositeLayer:
    """Fold the first composite layer of the CIFAR networks: its norm is a sum over one input."""
    norm = _fold_norm(layer.norm)
    return FoldedCompositeLayer(FoldedSum(norm.scale[None], norm.shift), _fold_bottleneck(layer.bottleneck))


def _fold_bottleneck(convs: Any) -> tuple[FoldedConv, ...]:
    return (
        _fold_conv(convs.conv1, _fold_norm(convs.norm2), relu=True),
        _fold_conv(convs.conv2, _fold_norm(convs.norm3), relu=True),
        _fold_conv(convs.conv3),
    )


def _fold_sum(layer: Any) -> FoldedSum:
    """Fold the n + 1 norms of a cross-layer depthwise layer into one weighted sum of its n inputs."""
    outer = _fold_norm(layer.norm)
    if layer.num_inputs == 1:
        return FoldedSum(outer.scale[None], outer.shift)
    inner = [_fold_norm(norm) for norm in layer.norms]
    weights = torch.stack([norm.scale for norm in inner]) * outer.scale
    bias = torch.stack([norm.shift for norm in inner]).sum(0) * outer.scale + outer.shift
    return FoldedSum(weights, bias)


def _fold_norm(module: Any) -> FoldedNorm:
    scale = _copy_as_float64(module.weight) * torch.rsqrt(_copy_as_float64(module.running_var) + module.eps)
    return FoldedNorm(scale, _copy_as_float64(module.bias) - _copy_as_float64(module.running_mean) * scale)


def _fold_conv(module: Any, norm: FoldedNorm | None = None, relu: bool = False) -> FoldedConv:
    """Fold a convolution together with the norm and ReLU that follow it."""
    weight, bias = _copy_as_float64(module.weight), None
    if norm is not None:
        weight, bias = weight * norm.scale[:, None, None, None], norm.shift
    return FoldedConv(weight, bias, module.stride[0], module.padding[0], relu)


def _copy_as_float64(values: torch.Tensor) -> torch.Tensor:
    return values.detach().to("cpu", torch.float64, copy=True)
