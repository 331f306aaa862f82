"""DenseNet: every layer reads, by concatenation, the block's input and all earlier layers' outputs.

Sources: Huang et al., "Densely Connected Convolutional Networks" (arXiv 1608.06993), section 3 and table 1; for
training in memory linear in depth Pleiss et al. (arXiv 1707.06990). Parameters have torchvision's names and order, so published
weights load without a mapping.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import nn

from densefeat.nets.base import STEMS, StagedNet
from densefeat.nets.efficient import norm_relu_conv


class DenseNet(StagedNet):
    """A DenseNet: plain, B (``bottleneck``), C (``compression`` < 1) and BC; ``(N, C, H, W)`` to logits.

    Args:
        growth_rate: k, the channels that each layer adds.
        block_config: Layers in each dense block.
        num_init_features: Channels of the stem; None for the paper's 2k in BC networks and with the ImageNet stem, else 16.
        bottleneck: A 1×1 convolution to ``bn_size * growth_rate`` channels before each 3×3.
        bn_size: Width of that bottleneck, in growth rates.
        compression: θ in (0, 1]: transitions keep ⌊θ·channels⌋.
        stem_type: ``"imagenet"`` (7×7 stride 2 and max pool: stride 4) or ``"cifar"`` (3×3: stride 1).
        in_chans, num_classes, global_pool, drop_rate: As in every timm model; ``drop_rate`` is the classifier's dropout.
        proj_drop_rate: Dropout after each convolution but the first (the paper's 0.2 where there is no augmentation).
        memory_efficient: Calls :meth:`set_grad_checkpointing`.
        device, dtype: Of the parameters.

    Raises:
        ValueError: An impossible structure; the message names the argument and its value.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int | None = None,
        bottleneck: bool = True,
        bn_size: int = 4,
        compression: float = 0.5,
        stem_type: str = "imagenet",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        memory_efficient: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_structure(growth_rate, block_config, bn_size, compression, stem_type)
        dd = {"device": device, "dtype": dtype}
        if num_init_features is None:
            is_bc = bottleneck and compression < 1
            num_init_features = 2 * growth_rate if is_bc or stem_type == "imagenet" else 16

        stem = STEMS[stem_type]
        stages = stem.make(in_chans, num_init_features, **dd)
        info = [dict(num_chs=num_init_features, reduction=stem.feature_reduction, module=f"features.{stem.feature}")]
        taps: dict[str, list[str]] = {"norm": [], "raw": []}
        channels, reduction = num_init_features, stem.reduction
        for i, num_layers in enumerate(block_config, 1):
            stages[f"denseblock{i}"] = DenseBlock(
                num_layers, channels, growth_rate, bottleneck=bottleneck, bn_size=bn_size, proj_drop_rate=proj_drop_rate, **dd
            )
            channels += num_layers * growth_rate
            taps["raw"].append(f"features.denseblock{i}")
            if i < len(block_config):
                info.append(dict(num_chs=channels, reduction=reduction, module=f"features.denseblock{i}"))
                taps["norm"].append(f"features.transition{i}.act")
                compressed = math.floor(channels * compression + 1e-9)  # 0.57 · 100 is 56.99… in floats
                if compressed < 1:
                    raise ValueError(f"compression={compression}: keeps none of {channels} channels in transition {i}")
                stages[f"transition{i}"] = Transition(channels, compressed, proj_drop_rate, **dd)
                channels, reduction = compressed, reduction * 2
        stages["norm5"] = nn.BatchNorm2d(channels, **dd)  # torchvision's name, whatever the number of blocks
        stages["act5"] = nn.ReLU()
        info.append(dict(num_chs=channels, reduction=reduction, module="features.act5"))
        taps["norm"].append("features.act5")

        self._assemble(nn.Sequential(stages), info, taps, in_chans, num_classes, global_pool, drop_rate, **dd)
        self.set_grad_checkpointing(memory_efficient)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's parameter groups: one a block if ``coarse``, else one a layer.

        A transition is in the group before it.
        """
        fine = [(r"^features\.denseblock(\d+)\.denselayer(\d+)", None), (r"^features\.transition(\d+)", MATCH_PREV_GROUP)]
        return dict(
            stem=r"^features\.(?:conv0|norm0)",
            blocks=r"^features\.(?:denseblock|transition)(\d+)" if coarse else fine,
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Train in memory linear in depth: the backward pass computes concatenations, norms and ReLUs again.

        Convolutions run once, and running statistics are updated once. See :func:`densefeat.nets.efficient.norm_relu_conv`.
        """
        for module in self.modules():
            if isinstance(module, DenseLayer | Transition):
                module.memory_efficient = enable


class DenseBlock(nn.ModuleDict):
    """A block of ``num_layers`` dense layers: ``(N, C, H, W)`` to ``(N, C + num_layers * growth_rate, H, W)``."""

    def __init__(self, num_layers: int, num_input_features: int, growth_rate: int, **layer_args: Any) -> None:
        super().__init__()
        for i in range(num_layers):
            self[f"denselayer{i + 1}"] = DenseLayer(num_input_features + i * growth_rate, growth_rate, **layer_args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        statistics: list[torch.Tensor] = []  # memory-efficient layers append to it, for the layers after them
        for layer in self.values():
            features.append(layer(features, statistics))
        return torch.cat(features, 1)


class DenseLayer(nn.Module):
    """A layer of a dense block: BN-ReLU-Conv3×3(k), in the B variants after BN-ReLU-Conv1×1(``bn_size * k``).

    It takes a list of tensors, which are concatenated to ``(N, num_input_features, H, W)``, to ``(N, growth_rate, H, W)``.
    """

    def __init__(
        self, num_input_features: int, growth_rate: int, bottleneck: bool, bn_size: int, proj_drop_rate: float, **dd: Any
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(num_input_features, **dd)
        self.act1 = nn.ReLU()
        if bottleneck:
            width = bn_size * growth_rate
            self.conv1 = nn.Conv2d(num_input_features, width, 1, bias=False, **dd)
            self.norm2: nn.Module = nn.BatchNorm2d(width, **dd)
            self.act2: nn.Module = nn.ReLU()
            self.conv2: nn.Module = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False, **dd)
        else:
            self.conv1 = nn.Conv2d(num_input_features, growth_rate, 3, padding=1, bias=False, **dd)
            self.norm2 = self.act2 = self.conv2 = nn.Identity()
        self.bottleneck = bottleneck
        self.proj_drop_rate = proj_drop_rate
        self.memory_efficient = False

    def forward(self, features: list[torch.Tensor], statistics: list[torch.Tensor] | None = None) -> torch.Tensor:
        if self.memory_efficient and not torch.jit.is_scripting() and torch.is_grad_enabled():
            return self.efficient_forward(features, statistics)
        x = F.dropout(self.conv1(self.act1(self.norm1(torch.cat(features, 1)))), self.proj_drop_rate, self.training)
        if self.bottleneck:
            x = F.dropout(self.conv2(self.act2(self.norm2(x))), self.proj_drop_rate, self.training)
        return x

    @torch.jit.unused
    def efficient_forward(self, features: list[torch.Tensor], statistics: list[torch.Tensor] | None) -> torch.Tensor:
        x = norm_relu_conv(features, self.norm1, self.act1, self.conv1, statistics)
        x = F.dropout(x, self.proj_drop_rate, self.training)
        if self.bottleneck:
            x = F.dropout(norm_relu_conv([x], self.norm2, self.act2, self.conv2), self.proj_drop_rate, self.training)
        return x


class Transition(nn.Sequential):
    """A transition, BN-ReLU-Conv1×1 and 2×2 average pool: ``(N, C, H, W)`` to ``(N, num_output_features, H // 2, W // 2)``."""

    def __init__(self, num_input_features: int, num_output_features: int, proj_drop_rate: float, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_input_features, **dd)
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(num_input_features, num_output_features, 1, bias=False, **dd)
        self.drop = nn.Dropout(proj_drop_rate)
        self.pool = nn.AvgPool2d(2, 2)
        self.memory_efficient = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.memory_efficient and not torch.jit.is_scripting() and torch.is_grad_enabled():
            x = self.efficient_conv(x)
        else:
            x = self.conv(self.act(self.norm(x)))
        return self.pool(self.drop(x))

    @torch.jit.unused
    def efficient_conv(self, x: torch.Tensor) -> torch.Tensor:
        return norm_relu_conv([x], self.norm, self.act, self.conv)


def _check_structure(growth_rate: int, block_config: Sequence[int], bn_size: int, compression: float, stem_type: str) -> None:
    """Raise ValueError, with the value, for a structure that is no DenseNet."""
    if growth_rate < 1 or bn_size < 1:
        raise ValueError(f"growth_rate={growth_rate}, bn_size={bn_size}: both must be at least 1")
    if not block_config or min(block_config) < 1:
        raise ValueError(f"block_config={tuple(block_config)}: give one positive number of layers for each dense block")
    if not 0 < compression <= 1:
        raise ValueError(f"compression={compression}: must be in (0, 1]")
    if stem_type not in STEMS:
        raise ValueError(f"stem_type={stem_type!r}: choose one of {', '.join(map(repr, STEMS))}")
