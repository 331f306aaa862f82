"""What classification heads read: the maps that a network's blocks give, one for each entry of its ``feature_info``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models._features import FeatureInfo
from torch import nn

from densefeat.errors import UsageError

FeatureInfos = FeatureInfo | Sequence[Mapping[str, Any]] | nn.Module


def map_channels(feature_info: FeatureInfos) -> list[int]:
    """The channels of each map, from timm's ``feature_info`` (its object, or a list of dicts) or from a model that has one.

    Raises UsageError where there is none, or it does not say ``num_chs``.
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


def check_maps(maps: Sequence[torch.Tensor], channels: Sequence[int]) -> None:
    """UsageError unless there is one map ``(N, C_i, H_i, W_i)`` for each entry of ``channels``, all of one N."""
    if len(maps) != len(channels):
        raise UsageError(f"{len(maps)} maps: this head reads {len(channels)}, of {', '.join(map(str, channels))} channels")
    for place, (given, count) in enumerate(zip(maps, channels, strict=True), 1):
        if given.ndim != 4 or given.shape[1] != count or given.shape[0] != maps[0].shape[0]:
            shape = tuple(given.shape)
            raise UsageError(f"map {place} of shape {shape}: this head reads ({len(maps[0])}, {count}, H, W) there")


def check_sizes(**sizes: int) -> None:
    """UsageError for a number of something that is not at least 1."""
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"{name} {value}: give at least 1")


def dropout(drop_rate: float) -> nn.Dropout:
    if not 0 <= drop_rate < 1:
        raise UsageError(f"drop_rate {drop_rate}: give at least 0 and less than 1")
    return nn.Dropout(drop_rate)
