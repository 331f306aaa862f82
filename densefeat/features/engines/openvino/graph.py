"""A folded network as an OpenVINO graph. Only the engine imports this file, since openvino is optional.

Weights are constants, and a norm is a multiplication and an addition. The compiler fuses these two with the ReLU after them,
and a weighted sum with all of its terms. A dense layer reads one concatenation of all earlier outputs: this is faster, with and
without AMX, than a norm for each output, and as fast as one concatenation that grows from layer to layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op

from densefeat.errors import BackendError
from densefeat.features.engines.engine import EngineSpec
from densefeat.features.engines.folded import (
    FoldedCompositeLayer,
    FoldedConv,
    FoldedDelugeBlock,
    FoldedDenseBlock,
    FoldedNetwork,
    FoldedNorm,
    FoldedSum,
)
from densefeat.features.engines.quantized import QuantizedNetwork


@dataclass(frozen=True)
class OpenVinoGraph:
    """A graph of the input ``images (N, C, H, W)``, float32, of which only C is fixed, and the outputs of each block.

    The outputs are ``means (N, C)`` and ``maps (N, C, H, W)``. ``any_size``: False for a graph in int8, of which OpenVINO's
    CPU plugin computes wrong numbers wherever a length is left open (2026.4: cosines of 0.3 to float32).
    """

    images: ov.Node
    means: tuple[ov.Node, ...]
    maps: tuple[ov.Node, ...]
    any_size: bool = True

    @property
    def blocks(self) -> int:
        return len(self.maps)

    def make_model(self, mean: bool, maps: bool, shape: Sequence[int]) -> ov.Model:
        """Make a model of copied nodes, for images of ``shape``, where -1 means any size.

        Its outputs are all means, then all maps, each if requested.
        """
        outputs = [*(self.means if mean else ()), *(self.maps if maps else ())]
        # of a graph that was read from a file, the model shares its parameter: only the copy takes the shape
        model = ov.Model(outputs, [self.images], "densefeat").clone()
        model.reshape(ov.PartialShape(list(shape)))
        return model


def build_graph(network: FoldedNetwork, spec: EngineSpec) -> OpenVinoGraph:
    """Build the graph of a network, up to the last block of the spec."""
    conv = network.stem.conv
    images = op.parameter(ov.PartialShape([-1, conv.weight.shape[1], -1, -1]), np.float32)
    x = _convolution(images, conv)
    if network.stem.pool:
        x = op.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)  # output 1 holds indices
    maps = []
    for i, block in enumerate(network.blocks[: spec.blocks[-1] + 1]):
        raw, norm, x = _dense_block(x, block) if isinstance(block, FoldedDenseBlock) else _deluge_block(x, block)
        if i in spec.blocks:
            maps.append(norm if spec.tap == "norm" else raw)
    means = (op.reduce_mean(block_maps, [2, 3], False) for block_maps in maps)
    return OpenVinoGraph(images, tuple(means), tuple(maps))


def read_graph(core: ov.Core, network: QuantizedNetwork, spec: EngineSpec) -> OpenVinoGraph:
    """Read the graph of a quantised network. Raises BackendError where it is none, or has other outputs than the spec."""
    try:
        model = core.read_model(network.nodes, network.constants)
        (images,) = model.get_parameters()
        means, maps = _split_evenly([result.input_value(0) for result in model.get_results()], len(spec.blocks))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackendError(f"the quantised network is not one of these blocks, or not of this OpenVINO ({reason})") from error
    return OpenVinoGraph(images, means, maps, any_size=False)


def _split_evenly(outputs: Sequence[ov.Output], blocks: int) -> tuple[tuple[ov.Output, ...], tuple[ov.Output, ...]]:
    if len(outputs) != 2 * blocks:
        raise ValueError(f"{len(outputs)} outputs for {blocks} blocks")
    return tuple(outputs[:blocks]), tuple(outputs[blocks:])


def _dense_block(x: ov.Output, block: FoldedDenseBlock) -> tuple[ov.Output, ov.Output, ov.Output]:
    """Return the block's maps for taps "raw" and "norm", and the next block's input."""
    outputs = [x]
    for layer in block.layers:
        x = _norm_relu(_concat(outputs), layer.norm)
        for conv in layer.convs:
            x = _convolution(x, conv)
        outputs.append(x)
    raw = _concat(outputs)
    norm = _norm_relu(raw, block.norm)
    if block.transition is None:
        return raw, norm, norm
    pooled = op.avg_pool(norm, [2, 2], [0, 0], [0, 0], [2, 2], exclude_pad=True)
    return raw, norm, _convolution(pooled, block.transition)


def _deluge_block(x: ov.Output, block: FoldedDelugeBlock) -> tuple[ov.Output, ov.Output, ov.Output]:
    """Return the block's maps for taps "raw" and "norm", and the next block's input, which is the latter."""
    opener = block.opener
    outputs = [_convolution(x, opener) if isinstance(opener, FoldedConv) else _composite_layer([x], opener)]
    for layer in block.layers:
        outputs.append(_composite_layer(outputs, layer))
    aggregate = _weighted_sum(outputs, block.aggregate)
    if block.relu:
        aggregate = op.relu(aggregate)
    return outputs[-1], aggregate, aggregate


def _composite_layer(outputs: Sequence[ov.Output], layer: FoldedCompositeLayer) -> ov.Output:
    x = op.relu(_weighted_sum(outputs, layer.aggregate))
    for conv in layer.convs:
        x = _convolution(x, conv)
    return x


def _weighted_sum(outputs: Sequence[ov.Output], layer: FoldedSum) -> ov.Output:
    x = _per_channel(layer.bias)
    for output, weight in zip(outputs, layer.weights, strict=True):
        x = op.add(op.multiply(output, _per_channel(weight)), x)
    return x


def _concat(outputs: Sequence[ov.Output]) -> ov.Output:
    return op.concat(outputs, 1) if len(outputs) > 1 else outputs[0]


def _norm_relu(x: ov.Output, norm: FoldedNorm) -> ov.Output:
    return op.relu(op.add(op.multiply(x, _per_channel(norm.scale)), _per_channel(norm.shift)))


def _convolution(x: ov.Output, conv: FoldedConv) -> ov.Output:
    padding = [conv.padding] * 2
    y = op.convolution(x, _constant(conv.weight), [conv.stride] * 2, padding, padding, [1, 1])
    if conv.bias is not None:
        y = op.add(y, _per_channel(conv.bias))
    return op.relu(y) if conv.relu else y


def _per_channel(values: torch.Tensor) -> ov.Output:
    return _constant(values.view(1, -1, 1, 1))


def _constant(values: torch.Tensor) -> ov.Output:
    """Convert to float32 with numpy: torch's threads wait for each other on a busy machine, in each of hundreds of calls."""
    with np.errstate(over="ignore"):
        return op.constant(values.numpy().astype(np.float32))
