"""Classification heads: modules that take the maps of a network's blocks to logits.

A network returns one map for each entry of timm's ``feature_info``. The linear head and the MLP read the last map. The
cross-layer head reads all maps and combines blocks as DelugeNet combines the layers within a block.
Source: Kuen et al., "DelugeNets: Deep Networks with Efficient and Flexible Cross-layer Information Inflows"
(arXiv 1611.05552), section 3.2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models._features import FeatureInfo
from torch import nn

from densefeat.errors import UsageError
from densefeat.nets import CrossLayerDepthwise, he_init

KINDS = ("linear", "mlp", "cross-layer")
_FeatureInfos = FeatureInfo | Sequence[Mapping[str, Any]] | nn.Module


def make_head(kind: str, feature_info: _FeatureInfos, num_classes: int, width: int, drop_rate: float = 0.0) -> nn.Module:
    """Make a head that takes the maps of ``feature_info`` (one each, in its order) to logits ``(N, num_classes)``.

    Args:
        kind: ``"linear"`` or ``"mlp"`` (one hidden layer), both on the last map; ``"cross-layer"``, on all of them.
        feature_info: timm's, of the maps that the head reads: ``model.feature_info``, entries of it, or the model.
        num_classes: Number of logits.
        width: Hidden units of ``"mlp"``, channels that ``"cross-layer"`` projects each map to.
        drop_rate: Dropout before the classifier, in training.

    Raises:
        UsageError: No such kind, no ``feature_info``, or a number out of range.
    """
    channels = _read_channels(feature_info)
    if kind == "linear":
        return LinearHead(channels[-1], num_classes, drop_rate)
    if kind == "mlp":
        return MlpHead(channels[-1], num_classes, width, drop_rate)
    if kind == "cross-layer":
        return CrossLayerHead(feature_info, width, num_classes, drop_rate)
    raise UsageError(f"head {kind!r}: choose one of {', '.join(KINDS)}")


class HeadedNet(nn.Module):
    """A network with one of these heads in place of its own classifier: ``(N, C, H, W)`` to logits ``(N, num_classes)``.

    ``backbone``: any timm model that returns its blocks' maps. ``kind``, ``width``: as :func:`make_head` takes them.
    Raises UsageError for a backbone without ``forward_intermediates``.
    """

    def __init__(self, backbone: nn.Module, kind: str, width: int, num_classes: int) -> None:
        super().__init__()
        if not hasattr(backbone, "forward_intermediates"):
            raise UsageError(f"head {kind!r}: {type(backbone).__name__} does not return its blocks' maps: take the linear head")
        self.backbone = backbone
        self.head = make_head(kind, backbone, num_classes, width)
        self.kind, self.width, self.num_classes = kind, width, num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return self.backbone.pretrained_cfg  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone.forward_intermediates(x, intermediates_only=True))  # type: ignore[operator]


class LinearHead(nn.Module):
    """A head of average pooling of the last map, dropout and a linear classifier.

    Raises UsageError for a number out of range.
    """

    def __init__(self, num_features: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        _check_sizes(num_features=num_features, num_classes=num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.drop = _make_dropout(drop_rate)
        self.classifier = nn.Linear(num_features, num_classes)
        self.apply(he_init)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Turn maps, the last ``(N, num_features, H, W)``, to logits ``(N, num_classes)``; UsageError for another last map."""
        return self.classifier(self.drop(_pool_last(maps, self.num_features)))


class MlpHead(nn.Module):
    """A head of average pooling of the last map, then one hidden layer: linear, GELU, dropout, linear.

    Raises UsageError for a number out of range.
    """

    def __init__(self, num_features: int, num_classes: int, hidden: int = 512, drop_rate: float = 0.0) -> None:
        super().__init__()
        _check_sizes(num_features=num_features, hidden=hidden, num_classes=num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.hidden = nn.Linear(num_features, hidden)
        self.act = nn.GELU()
        self.drop = _make_dropout(drop_rate)
        self.classifier = nn.Linear(hidden, num_classes)
        self.apply(he_init)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Turn maps, the last ``(N, num_features, H, W)``, to logits ``(N, num_classes)``; UsageError for another last map."""
        x = self.act(self.hidden(_pool_last(maps, self.num_features)))
        return self.classifier(self.drop(x))


class CrossLayerHead(nn.Module):
    """A head on the maps of all blocks: projected, combined with one weight for each channel and block, pooled, classified.

    Each map is averaged down to the smallest one's size, taken to ``width`` channels by a 1×1 convolution (average and
    convolution commute: this order is the cheaper) and normalised; the sum over blocks, weighted channel by channel, goes
    through one more norm, ReLU, global average pooling, dropout and a linear classifier.

    Args:
        feature_info: timm's, of the maps that the head reads: ``model.feature_info``, entries of it, or the model.
        width: Channels that each map is projected to.
        num_classes: Number of logits.
        drop_rate: Dropout of the pooled features, in training.

    Raises:
        UsageError: No ``feature_info``, or a number out of range.
    """

    def __init__(self, feature_info: _FeatureInfos, width: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        _check_sizes(width=width, num_classes=num_classes)
        self.channels = _read_channels(feature_info)
        self.num_classes = num_classes
        self.projections = nn.ModuleList(nn.Conv2d(count, width, 1, bias=False) for count in self.channels)
        self.aggregate = CrossLayerDepthwise(width, len(self.channels))
        self.drop = _make_dropout(drop_rate)
        self.classifier = nn.Linear(width, num_classes)
        self.apply(he_init)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Turn one map ``(N, C_i, H_i, W_i)`` a block, in the order of ``feature_info``, to logits ``(N, num_classes)``.

        Raises UsageError for other maps.
        """
        _check_maps(maps, self.channels)
        size = min(x.shape[2] for x in maps), min(x.shape[3] for x in maps)
        projected = [project(_pool_to_size(x, size)) for project, x in zip(self.projections, maps, strict=True)]
        x = F.relu(self.aggregate(projected)).mean((2, 3))
        return self.classifier(self.drop(x))

    @torch.no_grad()
    def block_usage(self) -> torch.Tensor:
        """Compute each block's share in each channel of the sum, ``|w_i[c]| / Σ_j |w_j[c]|``: float32 ``(blocks, width)``, CPU.

        Every channel's shares sum to 1 over the blocks (they are 0 where all its weights are). The weights multiply
        normalised maps, so on the training data each share is that of the block's standard deviation in the channel. A share
        does not say what accuracy would be lost without the block: blocks are correlated and can replace one another, and
        how much the classifier uses a channel does not count.
        """
        if not len(self.aggregate.norms):
            return torch.ones(1, self.classifier.in_features)
        weights = torch.stack([norm.get_parameter("weight").float().cpu() for norm in self.aggregate.norms]).abs()
        return weights / weights.sum(0).clamp(min=torch.finfo(torch.float32).tiny)


def _pool_to_size(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Average ``(N, C, H, W)`` to ``(N, C, *size)``."""
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)


def _pool_last(maps: Sequence[torch.Tensor], num_features: int) -> torch.Tensor:
    """Average the last map over its positions: ``(N, num_features)``."""
    if not maps or maps[-1].ndim != 4 or maps[-1].shape[1] != num_features:
        shapes = [tuple(x.shape) for x in maps]
        raise UsageError(f"maps of shapes {shapes}: this head reads the last, which must be (N, {num_features}, H, W)")
    return maps[-1].mean((2, 3))


def _read_channels(feature_info: _FeatureInfos) -> list[int]:
    """Read the channels of each map from timm's ``feature_info`` (its object, or a list of dicts) or from a model that has one.

    Raises UsageError where there is none, or where ``num_chs`` is missing.
    """
    info: Any = feature_info
    if isinstance(feature_info, nn.Module):
        info = getattr(feature_info, "feature_info", None)
    if info is None:
        name = type(feature_info).__name__
        raise UsageError(f"{name}: no feature_info; give a timm model, or a list of dict(num_chs, reduction, module)")
    entries: Any = info.get_dicts() if hasattr(info, "get_dicts") else list(info)
    channels = [entry.get("num_chs") if isinstance(entry, Mapping) else None for entry in entries]
    known = [count for count in channels if isinstance(count, int) and count > 0]
    if not known or len(known) < len(channels):
        raise UsageError(f"feature_info with num_chs {channels}: give a positive number of channels for each map")
    return known


def _check_maps(maps: Sequence[torch.Tensor], channels: Sequence[int]) -> None:
    """Raise UsageError unless there is one map ``(N, C_i, H_i, W_i)`` for each entry of ``channels``, all of one N."""
    if len(maps) != len(channels):
        raise UsageError(f"{len(maps)} maps: this head reads {len(channels)}, of {', '.join(map(str, channels))} channels")
    for place, (x, count) in enumerate(zip(maps, channels, strict=True), 1):
        if x.ndim != 4 or x.shape[1] != count or x.shape[0] != maps[0].shape[0]:
            shape = tuple(x.shape)
            raise UsageError(f"map {place} of shape {shape}: this head reads ({len(maps[0])}, {count}, H, W) there")


def _check_sizes(**sizes: int) -> None:
    """Raise UsageError for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"{name} {value}: give at least 1")


def _make_dropout(drop_rate: float) -> nn.Dropout:
    if not 0 <= drop_rate < 1:
        raise UsageError(f"drop_rate {drop_rate}: give at least 0 and less than 1")
    return nn.Dropout(drop_rate)
