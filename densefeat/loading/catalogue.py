"""The table of networks: parameters, channels, weights."""

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import timm
import torch
from timm.models import get_arch_pretrained_cfgs

from densefeat.errors import UsageError
from densefeat.loading.load import describe_weights_source
from densefeat.nets import VARIANTS


@dataclass(frozen=True)
class Network:
    """A network with one set of weights. ``parameters`` counts the network's own classifier. ``input_size``: (C, H, W)."""

    name: str
    parameters: int
    block_channels: tuple[int, ...]
    input_size: tuple[int, int, int]
    tag: str
    licence: str | None
    weights: str | None


def list_networks(pattern: str = "*") -> list[Network]:
    """List the networks whose name fits a shell pattern, with or without ``densefeat_``; one row a tag, the default first.

    Raises UsageError where no name fits.
    """
    names = [name for name in VARIANTS if fnmatch(name, pattern) or fnmatch(name.removeprefix("densefeat_"), pattern)]
    if not names:
        raise UsageError(f"no network fits {pattern!r}: `densefeat models` lists all {len(VARIANTS)}")
    return [network for name in names for network in _describe_network(name)]


def _describe_network(name: str) -> list[Network]:
    with torch.device("meta"):
        model = timm.create_model(name)
    feature_info: Any = model.feature_info
    channels = tuple(info["num_chs"] for info in feature_info[1:])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        Network(name, parameters, channels, config.input_size, config.tag or "", config.license,
                describe_weights_source(config) if config.has_weights else None)
        for config in get_arch_pretrained_cfgs(name).values()
    ]  # fmt: skip
