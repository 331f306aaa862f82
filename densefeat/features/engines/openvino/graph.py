"""A folded network as an OpenVINO graph. Imported by the engine alone, after openvino itself: see its ``load``.

Weights are constants, norms a multiplication and an addition: the compiler fuses both with the ReLU after them, and a sum over
earlier outputs with all of its terms. What a dense layer reads is one concatenation of all pieces: faster, with and without
AMX, than a norm for each piece, and as fast as growing the concatenation by one piece a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op

from densefeat.features.engines.engine import EngineSpec
from densefeat.features.engines.folded import Composite, Conv, Deluge, Dense, Network, Norm, Sum


@dataclass(frozen=True)
class Graph:
    """``images (N, C, H, W)``, float32, all but C open, to what is given of each block wanted: ``means (N, C)``, ``maps``."""

    images: ov.Node
    means: tuple[ov.Node, ...]
    maps: tuple[ov.Node, ...]

    def model(self, mean: bool, maps: bool, shape: Sequence[int]) -> ov.Model:
        """Of its own nodes, for images of ``shape``, -1 where open; outputs are the means, then the maps, of those asked."""
        model = ov.Model([*(self.means if mean else ()), *(self.maps if maps else ())], [self.images], "densefeat").clone()
        model.reshape(ov.PartialShape(list(shape)))
        return model


def _build(network: Network, wanted: EngineSpec) -> Graph:
    """Up to the last block wanted."""
    conv = network.stem.conv
    images = op.parameter(ov.PartialShape([-1, conv.weight.shape[1], -1, -1]), np.float32)
    x = _convolution(images, conv)
    if network.stem.pool:
        x = op.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)  # output 1: indices
    maps = []
    blocks: Sequence[Dense | Deluge] = network.blocks
    for i, block in enumerate(blocks[: wanted.blocks[-1] + 1]):
        raw, norm, x = _dense_block(x, block) if isinstance(block, Dense) else _deluge_block(x, block)
        if i in wanted.blocks:
            maps.append(norm if wanted.tap == "norm" else raw)
    means = (op.reduce_mean(each, [2, 3], False) for each in maps)
    return Graph(images, tuple(means), tuple(maps))


def _dense_block(x: ov.Output, block: Dense) -> tuple[ov.Output, ov.Output, ov.Output]:
    """Its own output, that after the norm, and what the next block reads."""
    pieces = [x]
    for layer in block.layers:
        x = _affine(_concatenated(pieces), layer.norm)
        for conv in layer.convs:
            x = _convolution(x, conv)
        pieces.append(x)
    raw = _concatenated(pieces)
    norm = _affine(raw, block.norm)
    if block.transition is None:
        return raw, norm, norm
    pooled = op.avg_pool(norm, [2, 2], [0, 0], [0, 0], [2, 2], exclude_pad=True)
    return raw, norm, _convolution(pooled, block.transition)


def _deluge_block(x: ov.Output, block: Deluge) -> tuple[ov.Output, ov.Output, ov.Output]:
    """The last layer's output, the aggregate, and again the aggregate, which the next block reads."""
    outputs = [_convolution(x, block.opener) if isinstance(block.opener, Conv) else _composite([x], block.opener)]
    for layer in block.layers:
        outputs.append(_composite(outputs, layer))
    aggregate = _total(outputs, block.aggregate)
    if block.relu:
        aggregate = op.relu(aggregate)
    return outputs[-1], aggregate, aggregate


def _composite(outputs: Sequence[ov.Output], layer: Composite) -> ov.Output:
    x = op.relu(_total(outputs, layer.aggregate))
    for conv in layer.convs:
        x = _convolution(x, conv)
    return x


def _total(outputs: Sequence[ov.Output], layer: Sum) -> ov.Output:
    x = _per_channel(layer.bias)
    for output, weight in zip(outputs, layer.weights, strict=True):
        x = op.add(op.multiply(output, _per_channel(weight)), x)
    return x


def _concatenated(pieces: Sequence[ov.Output]) -> ov.Output:
    return op.concat(pieces, 1) if len(pieces) > 1 else pieces[0]


def _affine(x: ov.Output, norm: Norm) -> ov.Output:
    """ReLU of it, too."""
    return op.relu(op.add(op.multiply(x, _per_channel(norm.scale)), _per_channel(norm.shift)))


def _convolution(x: ov.Output, conv: Conv) -> ov.Output:
    padding = [conv.padding] * 2
    y = op.convolution(x, _constant(conv.weight), [conv.stride] * 2, padding, padding, [1, 1])
    if conv.bias is not None:
        y = op.add(y, _per_channel(conv.bias))
    return op.relu(y) if conv.relu else y


def _per_channel(values: torch.Tensor) -> ov.Output:
    return _constant(values.view(1, -1, 1, 1))


def _constant(values: torch.Tensor) -> ov.Output:
    """By numpy: torch's threads wait for each other where the machine is busy, and this is called hundreds of times."""
    with np.errstate(over="ignore"):
        return op.constant(values.numpy().astype(np.float32))
