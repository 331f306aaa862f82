"""DelugeNet: a block keeps the outputs of its layers in a list and combines them channel by channel.

Source: Kuen et al., "DelugeNets: Deep Networks with Efficient and Flexible Cross-layer Information Inflows"
(arXiv 1611.05552), section 3, and the authors' Torch code.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import nn

from densefeat.nets.base import STEMS, StagedNet
from densefeat.nets.efficient import has_hooks, is_affine_norm, norm_relu_conv, widen


class DelugeNet(StagedNet):
    """A DelugeNet for ImageNet (stride 4 before block 1) or CIFAR (stride 1); ``(N, C, H, W)`` to logits.

    Args:
        block_widths: Bottleneck width n of each block; its outputs have 2n channels.
        block_config: Composite layers in each block (the CIFAR network's first, which reads the stem, counted).
        stem_type: ``"imagenet"``: 7×7 stem of ``block_widths[0]`` channels and max pool, block 1 opened by a 1×1 convolution.
            ``"cifar"``: 3×3 stem of ``block_widths[0]`` channels, block 1 opened by its first composite layer.
        memory_efficient: Calls :meth:`set_grad_checkpointing`.
        in_chans, num_classes, global_pool, drop_rate, device, dtype: As in every timm model.

    Raises:
        ValueError: An impossible structure; the message names the argument and its value.
    """

    def __init__(
        self,
        block_widths: Sequence[int] = (64, 128, 256, 512),
        block_config: Sequence[int] = (7, 7, 8, 8),
        stem_type: str = "imagenet",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        memory_efficient: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_structure(block_widths, block_config, stem_type)
        dd = {"device": device, "dtype": dtype}
        stem, channels = STEMS[stem_type], block_widths[0]
        stages = stem.make(in_chans, channels, **dd)
        info = [dict(num_chs=channels, reduction=stem.feature_reduction, module=f"features.{stem.feature}")]
        taps: dict[str, list[str]] = {"norm": [], "raw": []}
        reduction = stem.reduction
        for i, (width, num_layers) in enumerate(zip(block_widths, block_config, strict=True), 1):
            if i > 1:
                opener: nn.Module = nn.Conv2d(channels, 2 * width, 3, stride=2, padding=1, bias=False, **dd)
                reduction *= 2
            elif stem_type == "imagenet":
                opener = nn.Conv2d(channels, 2 * width, 1, bias=False, **dd)
            else:
                opener = _make_first_composite_layer(channels, width, **dd)
                num_layers -= 1
            stages[f"block{i}"] = DelugeBlock(opener, num_layers, width, **dd)
            channels = 2 * width
            info.append(dict(num_chs=channels, reduction=reduction, module=f"features.block{i}"))
            taps["norm"].append(f"features.block{i}")
            taps["raw"].append(f"features.block{i}.layers.{num_layers - 1}")
        stages["act"] = nn.ReLU()
        info[-1]["module"] = taps["norm"][-1] = "features.act"

        self._assemble(nn.Sequential(stages), info, taps, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.set_grad_checkpointing(memory_efficient)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's parameter groups: one a block if ``coarse``, else one a layer.

        An aggregate is in the group before it.
        """
        fine = [
            (r"^features\.block(\d+)\.opener", (-1,)),
            (r"^features\.block(\d+)\.layers\.(\d+)", None),
            (r"^features\.block(\d+)\.aggregate", MATCH_PREV_GROUP),
        ]
        return dict(stem=r"^features\.(?:conv0|norm0)", blocks=r"^features\.block(\d+)" if coarse else fine)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Train with less memory: the backward pass computes norms and ReLUs within composite layers again.

        Convolutions run once, and running statistics are updated once; see :func:`densefeat.nets.efficient.norm_relu_conv`.
        The ``aggregate`` and ``bottleneck`` of a layer are then not called as modules, unless they have hooks, for which the
        layer keeps its intermediate results.
        """
        for module in self.modules():
            if isinstance(module, CompositeLayer):
                module.memory_efficient = enable


def _make_first_composite_layer(in_channels: int, width: int, **dd: Any) -> nn.Sequential:
    """Make the first composite layer of the CIFAR networks, which reads only the stem: BN, then the bottleneck."""
    norm = nn.BatchNorm2d(in_channels, **dd)
    return nn.Sequential(OrderedDict(norm=norm, bottleneck=Bottleneck(in_channels, width, **dd)))


class DelugeBlock(nn.Module):
    """A block: ``opener`` makes the first output, each composite layer adds one, and ``aggregate`` combines all of them.

    ``(N, C, H, W)`` to ``(N, 2n, H', W')``. The opener alone changes the shape: in the first block the channels (a 1×1
    convolution, or for CIFAR the first composite layer), in the others channels and size (a 3×3 convolution of stride 2; with
    the aggregate before it, it is the paper's block transition).
    """

    def __init__(self, opener: nn.Module, num_layers: int, width: int, **dd: Any) -> None:
        super().__init__()
        self.opener = opener
        self.layers = nn.ModuleList(CompositeLayer(i + 1, width, **dd) for i in range(num_layers))
        self.aggregate = CrossLayerDepthwise(2 * width, num_layers + 1, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [self.opener(x)]
        for layer in self.layers:
            outputs.append(layer(outputs))
        return self.aggregate(outputs)


class CompositeLayer(nn.Module):
    """A cross-layer depthwise layer over the block's outputs so far, then a bottleneck: a list of ``(N, 2n, H, W)`` to one."""

    def __init__(self, num_inputs: int, width: int, **dd: Any) -> None:
        super().__init__()
        self.aggregate = CrossLayerDepthwise(2 * width, num_inputs, **dd)
        self.bottleneck = Bottleneck(2 * width, width, **dd)
        self.memory_efficient = False

    def forward(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        if self.memory_efficient and not torch.jit.is_scripting() and torch.is_grad_enabled():
            return self.efficient_forward(outputs)
        return self.bottleneck(self.aggregate(outputs))

    @torch.jit.unused
    def efficient_forward(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        aggregate, rest = self.aggregate, self.bottleneck
        if has_hooks(aggregate, rest):
            return rest(aggregate(outputs))
        if aggregate.folds():
            x = rest.conv1(rest.act1(aggregate(outputs)))
        else:
            x = norm_relu_conv([aggregate.sum_of_norms(outputs)], aggregate.norm, rest.act1, rest.conv1)
        x = norm_relu_conv([x], rest.norm2, rest.act2, rest.conv2)
        return norm_relu_conv([x], rest.norm3, rest.act3, rest.conv3)


class CrossLayerDepthwise(nn.Module):
    """The sum of n earlier outputs, each through its own BatchNorm, then one more BatchNorm (the only one if n is 1).

    ``out[c] = BN(Σ_i (w_i[c] · BN_i(h_i)[c] + b_i[c]))``, for a list of n tensors ``(N, channels, H, W)`` to one such tensor;
    w_i start at 1/n, b_i at 0. In eval mode all n + 1 norms are folded into one weighted sum, whose weights every
    call computes from the current parameters and statistics. Norms of other kinds, without weights or statistics, in training
    mode or with hooks are called as modules instead. Source: DelugeNets, section 3.2.
    """

    def __init__(self, channels: int, num_inputs: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_inputs = num_inputs
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, **dd) for _ in range(num_inputs if num_inputs > 1 else 0))
        for norm in self.norms:
            nn.init.constant_(norm.weight, 1 / num_inputs)
        self.norm = nn.BatchNorm2d(channels, **dd)

    def forward(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        if self.folds():
            return self.folded_sum(outputs)
        return self.norm(self.sum_of_norms(outputs))

    def folds(self) -> bool:
        if self.num_inputs == 1 or self.training:
            return False
        return torch.jit.is_scripting() or self.has_affine_norms()

    @torch.jit.unused
    def has_affine_norms(self) -> bool:
        return all(is_affine_norm(norm) and not norm.training and not has_hooks(norm) for norm in (*self.norms, self.norm))

    def sum_of_norms(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Compute the input of the last norm: ``Σ_i (w_i[c] · BN_i(h_i)[c] + b_i[c])``."""
        if self.num_inputs == 1:
            return outputs[0]
        total = torch.zeros_like(outputs[0])
        for i, norm in enumerate(self.norms):
            total = total + norm(outputs[i])
        return total

    def folded_sum(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Compute all norms as one weighted sum: ``Σ_i a_i[c] · h_i[c] + b[c]``."""
        outer = _compute_scale(self.norm.weight, self.norm.running_var, self.norm.eps)
        bias = -widen(self.norm.running_mean)
        weights: list[torch.Tensor] = []
        for norm in self.norms:
            inner = _compute_scale(norm.weight, norm.running_var, norm.eps)
            bias = bias + widen(norm.bias) - widen(norm.running_mean) * inner
            weights.append(_per_channel(inner * outer, outputs[0]))
        total = _per_channel(bias * outer + widen(self.norm.bias), outputs[0])
        for i, weight in enumerate(weights):
            total = torch.addcmul(total, outputs[i], weight)
        return total


def _compute_scale(weight: torch.Tensor, variance: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute the factor that an eval-mode norm multiplies by, per channel."""
    return widen(weight) * torch.rsqrt(widen(variance) + eps)


def _per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.dtype).view(1, -1, 1, 1)


class Bottleneck(nn.Sequential):
    """The part of a composite layer after its first norm: ReLU - 1×1 (C→n) - BN - ReLU - 3×3 (n→n) - BN - ReLU - 1×1 (n→2n)."""

    def __init__(self, in_channels: int, width: int, **dd: Any) -> None:
        super().__init__()
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(width, **dd)
        self.act2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False, **dd)
        self.norm3 = nn.BatchNorm2d(width, **dd)
        self.act3 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 2 * width, 1, bias=False, **dd)


def _check_structure(block_widths: Sequence[int], block_config: Sequence[int], stem_type: str) -> None:
    """Raise ValueError, with the value, for a structure that is no DelugeNet."""
    if not block_config or len(block_widths) != len(block_config) or min(block_widths) < 1:
        raise ValueError(
            f"block_widths={tuple(block_widths)}, block_config={tuple(block_config)}: give one positive width for each block"
        )
    if min(block_config) < 2:
        raise ValueError(f"block_config={tuple(block_config)}: give at least 2 composite layers for each block")
    if stem_type not in STEMS:
        raise ValueError(f"stem_type={stem_type!r}: choose one of {', '.join(map(repr, STEMS))}")
