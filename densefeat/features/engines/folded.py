"""A network as inference sees it: each BatchNorm the affine map that it is in eval mode, in the convolution before it if any.

What engines are built from, so that each of them reads as the network does. All tensors are detached copies, on the CPU, in
float64: engines round once, to what they compute in.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from densefeat.features.engines.foldable import check_foldable
from densefeat.nets import DelugeBlock, DenseBlock, DenseNet


@dataclass(frozen=True)
class Norm:
    """``x * scale + shift`` for each channel ``(C,)``: a BatchNorm in eval mode."""

    scale: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True)
class Conv:
    """A convolution with ``weight (O, I, kH, kW)``, and what follows it: ``bias (O,)``, then ReLU where ``relu``."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: int
    padding: int
    relu: bool


@dataclass(frozen=True)
class Stem:
    """``conv``, then where ``pool`` a 3×3 max pool of stride 2 and padding 1."""

    conv: Conv
    pool: bool


@dataclass(frozen=True)
class Layer:
    """Of a dense block: ReLU of ``norm`` over all channels so far, then ``convs``: 1×1 (norm2, ReLU) and 3×3, or 3×3 alone."""

    norm: Norm
    convs: tuple[Conv, ...]


@dataclass(frozen=True)
class Dense:
    """A dense block, and what reads it: ReLU of ``norm``, ``transition`` (1×1, then 2×2 average pool; None after the last).

    The average pool commutes with the 1×1 convolution: engines pool first, a quarter of the arithmetic.
    """

    channels: int
    layers: tuple[Layer, ...]
    norm: Norm
    transition: Conv | None


@dataclass(frozen=True)
class Sum:
    """``Σ_i weights[i, c] · x_i[c] + bias[c]``, ``weights (n, C)``: a cross-layer depthwise layer with all its norms."""

    weights: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Composite:
    """Of a DelugeNet block: ReLU of ``aggregate`` over the outputs so far, ``convs``: 1×1 and 3×3 with ReLU, 1×1 without."""

    aggregate: Sum
    convs: tuple[Conv, ...]


@dataclass(frozen=True)
class Deluge:
    """``opener`` makes the first output of the list, each layer one more; ``aggregate`` of all is what the next block reads.

    After the last block a ReLU follows: ``relu``.
    """

    opener: Conv | Composite
    layers: tuple[Composite, ...]
    aggregate: Sum
    relu: bool


@dataclass(frozen=True)
class Network:
    """A stem, and blocks all of one kind."""

    stem: Stem
    blocks: tuple[Dense | Deluge, ...]


def fold(model: nn.Module) -> Network:
    """A DenseNet or DelugeNet, from its parameters and statistics as they are now. Raises NotFoldable."""
    check_foldable(model)
    features: Any = model.features
    if isinstance(model, DenseNet):
        return Network(_stem(features), tuple(_dense_blocks(features)))
    return Network(_stem(features), tuple(_deluge_blocks(features)))


def _stem(features: Any) -> Stem:
    if hasattr(features, "norm0"):
        return Stem(_conv(features.conv0, _norm(features.norm0), relu=True), pool=True)
    return Stem(_conv(features.conv0), pool=False)


def _dense_blocks(features: Any) -> Iterable[Dense]:
    count = sum(isinstance(module, DenseBlock) for module in features.children())
    for i in range(1, count + 1):
        block = features.get_submodule(f"denseblock{i}")
        layers = tuple(_dense_layer(layer) for layer in block.children())
        transition = features.get_submodule(f"transition{i}") if i < count else None
        end = _norm(features.get_submodule("norm5") if transition is None else transition.get_submodule("norm"))
        compressing = None if transition is None else _conv(transition.get_submodule("conv"))
        yield Dense(len(layers[0].norm.scale), layers, end, compressing)


def _dense_layer(layer: Any) -> Layer:
    if not layer.bottleneck:
        return Layer(_norm(layer.norm1), (_conv(layer.conv1),))
    return Layer(_norm(layer.norm1), (_conv(layer.conv1, _norm(layer.norm2), relu=True), _conv(layer.conv2)))


def _deluge_blocks(features: Any) -> Iterable[Deluge]:
    blocks = [module for module in features.children() if isinstance(module, DelugeBlock)]
    for block in blocks:
        opener = block.opener
        first = _conv(opener) if isinstance(opener, nn.Conv2d) else _opening_layer(opener)
        layers = tuple(Composite(_total(layer.aggregate), _bottleneck(layer.bottleneck)) for layer in block.layers)
        yield Deluge(first, layers, _total(block.aggregate), relu=block is blocks[-1])


def _opening_layer(layer: Any) -> Composite:
    """The CIFAR networks' first composite layer: its norm is a sum over one input."""
    only = _norm(layer.norm)
    return Composite(Sum(only.scale[None], only.shift), _bottleneck(layer.bottleneck))


def _bottleneck(convs: Any) -> tuple[Conv, ...]:
    return (
        _conv(convs.conv1, _norm(convs.norm2), relu=True),
        _conv(convs.conv2, _norm(convs.norm3), relu=True),
        _conv(convs.conv3),
    )


def _total(layer: Any) -> Sum:
    """All n + 1 norms of a cross-layer depthwise layer as one weighted sum."""
    outer = _norm(layer.norm)
    if layer.num_inputs == 1:
        return Sum(outer.scale[None], outer.shift)
    inner = [_norm(each) for each in layer.norms]
    weights = torch.stack([each.scale for each in inner]) * outer.scale
    bias = torch.stack([each.shift for each in inner]).sum(0) * outer.scale + outer.shift
    return Sum(weights, bias)


def _norm(module: Any) -> Norm:
    scale = _wide(module.weight) * torch.rsqrt(_wide(module.running_var) + module.eps)
    return Norm(scale, _wide(module.bias) - _wide(module.running_mean) * scale)


def _conv(module: Any, after: Norm | None = None, relu: bool = False) -> Conv:
    """``after``: the norm that follows, folded in."""
    weight, bias = _wide(module.weight), None
    if after is not None:
        weight, bias = weight * after.scale[:, None, None, None], after.shift
    return Conv(weight, bias, module.stride[0], module.padding[0], relu)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.detach().to("cpu", torch.float64, copy=True)
