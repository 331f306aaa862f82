"""The engine for NVIDIA GPUs: Triton kernels that read and write each map as seldom as the network allows.

Maps lie as rows, one pixel each. A dense block is one buffer, into whose columns the block's input and then each layer are
written: nothing is concatenated. Norm and ReLU happen as a convolution reads, bias and ReLU as it writes. A transition pools
before it convolves and computes the block's mean as it reads. A DelugeNet layer sums earlier outputs as it reads them. What
remains, for each pixel and value, is:

- stem: the image is read, written with its padding in the maps' type, and read again; the convolution's map is written, and
  where there is a max pool read, and the pool's result written;
- dense layer: all channels so far are read, the 1×1 convolution's map written and read, the layer's channels written;
- transition, or the last block's norm: the buffer is read, a quarter of the pixels written;
- DelugeNet layer: all outputs so far are read, two maps of the bottleneck written and read, one output written; the aggregate
  reads all outputs and writes the next block's input.

:func:`count_traffic` adds this up, without weights and means, which are small beside a batch. For DenseNet-121 at 224×224 in
bfloat16 it is 46 MB an image.
"""

import importlib.util
import os
import shutil
import threading
from collections import OrderedDict
from contextlib import nullcontext
from math import ceil
from typing import Any

import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.features.engines.engine import BlockOutput, EngineSpec, concat_outputs
from densefeat.features.engines.folded import (
    FoldedCompositeLayer,
    FoldedConv,
    FoldedDelugeBlock,
    FoldedDenseBlock,
    FoldedNetwork,
    fold_network,
)

_MAX_ELEMENTS = 1 << 29  # of the largest map of a pass: 2 GiB in float32
_MAX_GRAPHS = 4  # captured graphs kept at a time
_MIN_CAPABILITY = (8, 0)
_SETUP = threading.Lock()  # shared by all engines: a capture fails if another thread synchronises the device, as tuning does


def find_triton_obstacle(device: torch.device) -> str | None:
    """Say why this engine cannot run on a device; None if it can."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"{device} is not an NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if (capability := torch.cuda.get_device_capability(device)) < _MIN_CAPABILITY:
        actual, required = (".".join(map(str, pair)) for pair in (capability, _MIN_CAPABILITY))
        return f"{device} has compute capability {actual}, below {required}"
    return _find_compiler_obstacle()


def _find_compiler_obstacle() -> str | None:
    """Say why Triton could not build its driver at the first launch; None if it could. Triton searches the same way."""
    if (name := os.environ.get("CC")) is not None:
        return None if shutil.which(name) else f"triton needs a C compiler, and CC={name} is not a program that can be run"
    if shutil.which("gcc") or shutil.which("clang"):
        return None
    return "triton needs a C compiler: install gcc or clang, or set CC"


class TritonEngine:
    """An :class:`Engine` for NVIDIA GPUs, which runs a network's kernels as CUDA graphs.

    A batch size that comes a second time is captured as a graph; the latest graphs are kept, in one pool of memory. A batch
    whose maps would be too large is split. Calls from several threads take turns, since they share the graphs' memory; calls
    on several streams wait for each other.

    Args:
        network: The folded network.
        spec: ``device`` must be one without an obstacle (:func:`find_triton_obstacle`), or with TRITON_INTERPRET=1 the CPU.
    """

    def __init__(self, network: FoldedNetwork, spec: EngineSpec) -> None:
        # These import triton, which is not installed everywhere.
        from densefeat.features.engines.triton.blocks import TritonNetwork
        from densefeat.features.engines.triton.kernels import INTERPRETED

        self.folded, self.spec = network, spec
        self.network = TritonNetwork(network, spec)
        self.captures = spec.device.type == "cuda" and not INTERPRETED.value
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.graphs: OrderedDict[tuple[Any, ...], CapturedGraph | None] = OrderedDict()
        self.turn = threading.Lock()
        self.finished = torch.cuda.Event() if self.captures else None  # of the last replay and the copies of its outputs

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        """Compute the features as :class:`Engine` describes.

        Raises:
            UsageError: The images have other channels than the network takes, or are too small for the last block.
        """
        channels = self.folded.stem.conv.weight.shape[1]
        if x.ndim != 4 or x.shape[1] != channels or not len(x):
            raise UsageError(f"images of shape {tuple(x.shape)}: this network takes (N, {channels}, H, W)")
        height, width = x.shape[2:]
        last = self.spec.blocks[-1] + 1
        sizes = _compute_map_sizes(self.folded, height, width)[: last + 1]
        if min(sizes[-1]) < 1:
            raise UsageError(f"images of {height}×{width} pixels are too small for block {last}")
        passes = ceil(len(x) / max(1, _MAX_ELEMENTS // _count_largest_map(self.folded, sizes)))
        with self.turn, torch.cuda.device(self.spec.device) if self.spec.device.type == "cuda" else nullcontext():
            parts = [self.run(images, mean, maps) for images in x.split(ceil(len(x) / passes))]
        return [concat_outputs(block_parts) for block_parts in zip(*parts, strict=True)]

    def run(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        """Run the network once. The first call of a size compiles and tunes the kernels, the second captures a graph."""
        key = (*x.shape, mean, maps)
        if not (graph := self.graphs.get(key)):
            with _SETUP:
                if not self.captures or key not in self.graphs:
                    self.keep_graph(key, None)
                    return self.network(self.network.allocate_input(len(x), *x.shape[2:]).fill(x), mean, maps)
                graph = CapturedGraph(self, x, mean, maps)
        self.keep_graph(key, graph)
        return graph.replay(x)

    def keep_graph(self, key: tuple[Any, ...], graph: "CapturedGraph | None") -> None:
        self.graphs[key] = graph
        self.graphs.move_to_end(key)
        while len(self.graphs) > _MAX_GRAPHS:
            if self.finished is not None:
                self.finished.synchronize()  # a replay on another stream may still use the memory
            self.graphs.popitem(last=False)


class CapturedGraph:
    """The passes of one batch size, captured. It has its own images and outputs; other memory is shared between graphs."""

    def __init__(self, engine: TritonEngine, x: torch.Tensor, mean: bool, maps: bool) -> None:
        assert engine.finished is not None
        self.images, self.finished = engine.network.allocate_input(len(x), *x.shape[2:]), engine.finished
        self.graph = torch.cuda.CUDAGraph()
        # thread_local lets other threads decode images and pin memory during the capture.
        with torch.cuda.graph(self.graph, pool=engine.pool, capture_error_mode="thread_local"):
            self.outputs = engine.network(self.images, mean, maps)

    def replay(self, x: torch.Tensor) -> list[BlockOutput]:
        """Run the graph after the engine's last replay, whichever stream that was on; return copies of the outputs."""
        torch.cuda.current_stream().wait_event(self.finished)
        self.images.fill(x)
        self.graph.replay()
        outputs = [BlockOutput(*(None if t is None else t.clone() for t in (out.mean, out.maps))) for out in self.outputs]
        self.finished.record()
        return outputs


def _compute_map_sizes(network: FoldedNetwork, height: int, width: int) -> list[tuple[int, int]]:
    """List ``(height, width)`` of the stem convolution's map, then of each block's map, for images of one size."""

    def strided(size: int, conv: FoldedConv) -> int:
        return (size + 2 * conv.padding - conv.weight.shape[-1]) // conv.stride + 1

    stem = network.stem
    sizes = [(strided(height, stem.conv), strided(width, stem.conv))]
    height, width = ((size - 1) // 2 + 1 if stem.pool else size for size in sizes[0])
    for block in network.blocks:
        if isinstance(block, FoldedDelugeBlock) and isinstance(block.opener, FoldedConv):
            height, width = strided(height, block.opener), strided(width, block.opener)
        sizes.append((height, width))
        if isinstance(block, FoldedDenseBlock):
            height, width = height // 2, width // 2
    return sizes


def _count_largest_map(network: FoldedNetwork, sizes: list[tuple[int, int]]) -> int:
    """Count one image's values in the largest tensor of a pass through the blocks that are in ``sizes``."""
    pixels = [height * width for height, width in sizes]
    values = [pixels[0] * len(network.stem.conv.weight)]
    for block, count in zip(network.blocks, pixels[1:], strict=False):
        if isinstance(block, FoldedDenseBlock):
            values.append(count * len(block.norm.scale))
        else:
            values.append(count * len(block.aggregate.bias) * (len(block.layers) + 1))
    return max(values)


def count_traffic(model: nn.Module, height: int, width: int, dtype: torch.dtype) -> int:
    """Count the bytes that are read and written for one image, up to the means of all blocks: see the top of this file.

    Raises:
        NotFoldable: The network has parts that engines do not know.
    """
    network = fold_network(model)
    channels, border = network.stem.conv.weight.shape[1], 2 * network.stem.conv.padding
    stem, *pixels = (height * width for height, width in _compute_map_sizes(network, height, width))
    written = len(network.stem.conv.weight)
    values = channels * (height * width + (height + border) * (width + border)) + written * stem
    if network.stem.pool:
        values += written * (stem + pixels[0])
    for i, (block, count) in enumerate(zip(network.blocks, pixels, strict=True)):
        if isinstance(block, FoldedDenseBlock):
            values += _count_dense_values(block, count, count if i + 1 == len(pixels) else pixels[i + 1])
        else:
            values += _count_deluge_values(block, count, pixels[max(i - 1, 0)])
    return 4 * channels * height * width + values * dtype.itemsize


def _count_dense_values(block: FoldedDenseBlock, pixels: int, pooled: int) -> int:
    values = pixels * len(block.norm.scale)
    for layer in block.layers:
        values += pixels * (len(layer.norm.scale) + sum(2 * len(conv.weight) for conv in layer.convs[:-1]))
        values += pixels * len(layer.convs[-1].weight)
    return values if block.transition is None else values + pooled * len(block.transition.weight)


def _count_deluge_values(block: FoldedDelugeBlock, pixels: int, input_pixels: int) -> int:
    """Count the values that a block reads and writes whose outputs have ``pixels`` and whose input has ``input_pixels``."""
    opener, channels = block.opener, len(block.aggregate.bias)
    if isinstance(opener, FoldedCompositeLayer):
        values = _count_composite_values(opener, pixels)
    else:
        values = input_pixels * opener.weight.shape[1] + pixels * channels
    values += sum(_count_composite_values(layer, pixels) for layer in block.layers)
    return values + pixels * (block.aggregate.weights.numel() + (0 if block.relu else channels))


def _count_composite_values(layer: FoldedCompositeLayer, pixels: int) -> int:
    first, second, third = (len(conv.weight) for conv in layer.convs)
    return pixels * (layer.aggregate.weights.numel() + 2 * first + 2 * second + third)
