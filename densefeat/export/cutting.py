"""Cut a network down to what some channels of its taps depend on. What stays computes the same numbers."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from densefeat.nets import DenseBlock, DenseNet, StagedNet, Transition


class _Selection(nn.Module):
    """Some channels of ``(N, C, …)``, by their positions, ascending."""

    positions: torch.Tensor

    def __init__(self, positions: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("positions", torch.from_numpy(positions.astype(np.int64)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(1, self.positions)


def make_selection(positions: np.ndarray, width: int) -> nn.Module:
    """Make the module that takes ascending positions out of ``width`` channels: ``(N, width, …)`` to ``(N, positions, …)``."""
    return nn.Identity() if len(positions) == width else _Selection(positions)


def truncate_after(model: StagedNet, module: str) -> None:
    """Remove what runs after a module, and the classifier."""
    model.features = _truncate(model.features, module.split(".")[1:])
    model.reset_classifier(0, "")


def _truncate(sequence: nn.Sequential, path: list[str]) -> nn.Sequential:
    """Keep the modules of a sequence up to the one at ``path``.

    A module that contains it but is no sequence is kept entirely.
    """
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in sequence.named_children():
        last = name == path[0]
        kept[name] = _truncate(child, path[1:]) if last and len(path) > 1 and isinstance(child, nn.Sequential) else child
        if last:
            break
    return nn.Sequential(kept)


def cut_network(model: StagedNet, reads: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove from a network in eval mode, in place, what the channels that are read do not depend on.

    Everything after the last tap goes. In a DenseNet every layer reads all earlier ones, and a transition its whole block, so
    that in the last block the layers after the last one that is read go, and in that one the channels that are not read; the
    norm of a tap ``norm`` is applied to the channels that are read alone.

    Args:
        model: The network.
        reads: By the module of each tap, in the network's order: the positions of the channels that are read, ascending.

    Returns:
        By module: the channels that it puts out from now on, by their old positions, ascending.
    """
    outputs = {module: np.arange(_count_channels(model, module)) for module in reads}
    last = list(reads)[-1]
    truncate_after(model, last)
    if isinstance(model, DenseNet) and len(reads[last]) < len(outputs[last]):
        outputs[last] = _cut_last_block(model, last, reads[last])
    return outputs


def _count_channels(model: StagedNet, module: str) -> int:
    """Count the channels that the module of a tap puts out."""
    (number,) = {modules.index(module) for modules in model.block_taps.values() if module in modules}
    return model.feature_info[number + 1]["num_chs"]  # the first is the stem


def _cut_last_block(model: DenseNet, tap: str, channels: np.ndarray) -> np.ndarray:
    """Cut the block of the last tap; return the channels that the tap's module still puts out."""
    raw = tap in model.block_taps["raw"]
    number = model.block_taps["raw" if raw else "norm"].index(tap) + 1
    features = model.features
    block = features.get_submodule(f"denseblock{number}")
    assert isinstance(block, DenseBlock)
    kept = _cut_layers(block, channels)
    if not len(block):
        kept = channels
        _cut_input(features, number, channels)
    if raw:
        return kept
    holder, name = (features, "norm5") if tap == "features.act5" else (features.get_submodule(f"transition{number}"), "norm")
    norm = getattr(holder, name)
    _cut_norm(norm, channels)
    setattr(holder, name, nn.Sequential(make_selection(np.searchsorted(kept, channels), len(kept)), norm))
    return channels


def _cut_layers(block: DenseBlock, channels: np.ndarray) -> np.ndarray:
    """Remove the layers after the last one that is read, and that one's channels that are not; return the channels left."""
    layers: list[Any] = list(block.values())
    first = layers[0]
    width: int = first.norm1.num_features  # of the block's input
    growth: int = (first.conv2 if first.bottleneck else first.conv1).out_channels
    needed = max(0, (int(channels[-1]) - width) // growth + 1)
    for name in list(block)[needed:]:
        del block[name]
    if not needed:
        return np.arange(width)
    before = width + (needed - 1) * growth
    own = channels[channels >= before]
    layer = layers[needed - 1]
    _cut_conv(layer.conv2 if layer.bottleneck else layer.conv1, own - before)
    return np.concatenate([np.arange(before), own])


def _cut_input(features: nn.Sequential, number: int, channels: np.ndarray) -> None:
    """Cut what makes a block's input to some channels: the transition's convolution, or the stem's."""
    if number > 1:
        transition = features.get_submodule(f"transition{number - 1}")
        assert isinstance(transition, Transition)
        _cut_conv(transition.conv, channels)
        return
    _cut_conv(features.get_submodule("conv0"), channels)
    if hasattr(features, "norm0"):
        _cut_norm(features.get_submodule("norm0"), channels)


def _cut_conv(conv: nn.Module, channels: np.ndarray) -> None:
    """Keep some output channels of a convolution without a bias."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is None
    conv.weight = nn.Parameter(conv.weight[channels].clone(), requires_grad=False)
    conv.out_channels = len(channels)


def _cut_norm(norm: nn.Module, channels: np.ndarray) -> None:
    """Keep some channels of a BatchNorm."""
    assert isinstance(norm, nn.BatchNorm2d)
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name)[channels].clone(), requires_grad=False))
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[channels].clone())
    norm.num_features = len(channels)
