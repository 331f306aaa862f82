"""The layers whose outputs a column holds side by side: those of a dense block, worked out from the network's structure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from timm.models import split_model_name_tag
from timm.models.densenet import DenseNet as TimmDenseNet
from torch import nn

from densefeat.errors import DensefeatError
from densefeat.loading import is_run_folder, make_network, read_run
from densefeat.nets import DenseNet
from densefeat.store import block_name, parse_columns

INPUT, WHOLE = "input", "all"  # names of layers: the input of a dense block; all channels of a column
_STRUCTURE = "densenet"  # in the names of all networks with dense blocks


@dataclass(frozen=True)
class Layer:
    """Features of a column that follow one another, because one layer of the network made them; ``width``: how many."""

    column: str
    name: str
    width: int


def find_layers(provenance: Mapping[str, Any], widths: Mapping[str, int]) -> tuple[list[Layer], list[str]]:
    """List the layers of columns, in the order of the features, and notes on columns whose layers are not known.

    The output of a dense block is its input and the outputs of its layers, side by side; norms and pools keep the order. The
    network is built from its recorded name, without weights: one of densefeat's or timm's, or a run whose folder is there. A
    column of any other network, or of another width than its block, is one layer.

    Args:
        provenance: Of the store. widths: Features of each column.
    """
    blocks = _find_dense_blocks(str(provenance.get("model")))
    layers: list[Layer] = []
    unknown: list[str] = []
    for column in parse_columns(list(widths), provenance):
        width = widths[column.name]
        sizes = blocks.get(column.block, [])
        if sum(sizes) == width:
            names = [INPUT, *(f"layer {number}" for number in range(1, len(sizes)))]
            layers += [Layer(column.name, name, size) for name, size in zip(names, sizes, strict=True)]
        else:
            layers.append(Layer(column.name, WHOLE, width))
            unknown.append(column.name)
    return layers, _note_unknown(unknown, list(widths))


def _note_unknown(unknown: Sequence[str], columns: Sequence[str]) -> list[str]:
    if not unknown:
        return []
    named = "all columns" if list(unknown) == list(columns) else ", ".join(unknown)
    return [f"{named}: no dense layers are known, so that each column counts as one layer"]


def _find_dense_blocks(model: str) -> dict[str, list[int]]:
    """Return the widths of the input and the layers of each dense block of a network, by the name that columns have for it."""
    try:
        network = _build_network(model)
    except DensefeatError:  # a run that has been moved or changed
        return {}
    network = getattr(network, "backbone", network)  # of a run with a head of ours
    if isinstance(network, DenseNet):
        blocks = _list_dense_blocks(network)
        return {block_name(number): widths for number, widths in enumerate(blocks.values(), 1)}
    if isinstance(network, TimmDenseNet):
        blocks = _list_dense_blocks(network)
        last = list(blocks.values())[-1]
        return {f"features.{name}": widths for name, widths in blocks.items()} | {"features.norm5": last}
    return {}


def _build_network(model: str) -> nn.Module | None:
    """Build a network on the device ``meta``, where it takes no memory; None for one that has no dense blocks."""
    with torch.device("meta"):
        if is_run_folder(model):
            run = read_run(model)
            return make_network(run) if _STRUCTURE in run.architecture else None
        name = split_model_name_tag(model)[0]
        return timm.create_model(name) if _STRUCTURE in name and timm.is_model(name) else None


def _list_dense_blocks(network: DenseNet | TimmDenseNet) -> dict[str, list[int]]:
    """Return the widths of each dense block: a layer's norm reads the input and the outputs of all layers before it."""
    blocks = {}
    for name, block in network.features.named_children():
        if name.startswith("denseblock"):
            layers: list[Any] = list(block.children())
            reads = [layer.norm1.num_features for layer in layers]
            last = [module for module in layers[-1].modules() if isinstance(module, nn.Conv2d)][-1].out_channels
            blocks[name] = [reads[0], *np.diff(reads).tolist(), last]
    return blocks
