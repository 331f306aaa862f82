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

from densefeat.features.backends.engine import Wanted
from densefeat.features.backends.folded import Composite, Conv, Deluge, Dense, Network, Norm, Sum


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


def build(network: Network, wanted: Wanted) -> Graph:
    """Up to the last block wanted."""
    conv = network.stem.conv
    images = op.parameter(ov.PartialShape([-1, conv.weight.shape[1], -1, -1]), np.float32)
    x = convolution(images, conv)
    if network.stem.pool:
        x = op.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)  # output 1: indices
    maps = []
    blocks: Sequence[Dense | Deluge] = network.blocks
    for i, block in enumerate(blocks[: wanted.blocks[-1] + 1]):
        raw, norm, x = dense_block(x, block) if isinstance(block, Dense) else deluge_block(x, block)
        if i in wanted.blocks:
            maps.append(norm if wanted.tap == "norm" else raw)
    means = (op.reduce_mean(each, [2, 3], False) for each in maps)
    return Graph(images, tuple(means), tuple(maps))


def dense_block(x: ov.Output, block: Dense) -> tuple[ov.Output, ov.Output, ov.Output]:
    """Its own output, that after the norm, and what the next block reads."""
    pieces = [x]
    for layer in block.layers:
        x = affine(concatenated(pieces), layer.norm)
        for conv in layer.convs:
            x = convolution(x, conv)
        pieces.append(x)
    raw = concatenated(pieces)
    norm = affine(raw, block.norm)
    if block.transition is None:
        return raw, norm, norm
    pooled = op.avg_pool(norm, [2, 2], [0, 0], [0, 0], [2, 2], exclude_pad=True)
    return raw, norm, convolution(pooled, block.transition)


def deluge_block(x: ov.Output, block: Deluge) -> tuple[ov.Output, ov.Output, ov.Output]:
    """The last layer's output, the aggregate, and again the aggregate, which the next block reads."""
    outputs = [convolution(x, block.opener) if isinstance(block.opener, Conv) else composite([x], block.opener)]
    for layer in block.layers:
        outputs.append(composite(outputs, layer))
    aggregate = total(outputs, block.aggregate)
    if block.relu:
        aggregate = op.relu(aggregate)
    return outputs[-1], aggregate, aggregate


def composite(outputs: Sequence[ov.Output], layer: Composite) -> ov.Output:
    x = op.relu(total(outputs, layer.aggregate))
    for conv in layer.convs:
        x = convolution(x, conv)
    return x


def total(outputs: Sequence[ov.Output], layer: Sum) -> ov.Output:
    x = per_channel(layer.bias)
    for output, weight in zip(outputs, layer.weights, strict=True):
        x = op.add(op.multiply(output, per_channel(weight)), x)
    return x


def concatenated(pieces: Sequence[ov.Output]) -> ov.Output:
    return op.concat(pieces, 1) if len(pieces) > 1 else pieces[0]


def affine(x: ov.Output, norm: Norm) -> ov.Output:
    """ReLU of it, too."""
    return op.relu(op.add(op.multiply(x, per_channel(norm.scale)), per_channel(norm.shift)))


def convolution(x: ov.Output, conv: Conv) -> ov.Output:
    padding = [conv.padding] * 2
    y = op.convolution(x, constant(conv.weight), [conv.stride] * 2, padding, padding, [1, 1])
    if conv.bias is not None:
        y = op.add(y, per_channel(conv.bias))
    return op.relu(y) if conv.relu else y


def per_channel(values: torch.Tensor) -> ov.Output:
    return constant(values.view(1, -1, 1, 1))


def constant(values: torch.Tensor) -> ov.Output:
    """By numpy: torch's threads wait for each other where the machine is busy, and this is called hundreds of times."""
    with np.errstate(over="ignore"):
        return op.constant(values.numpy().astype(np.float32))
