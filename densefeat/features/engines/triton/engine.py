"""DenseNets and DelugeNets on NVIDIA GPUs, in Triton kernels that read and write each map as seldom as the network allows.

Maps lie as rows, a pixel each. A dense block is one buffer, into whose columns the block's input and then each layer are
written: nothing is concatenated. Norm and ReLU happen as a convolution reads, bias and ReLU as it writes; a transition pools
before it convolves and gives the block's mean as it reads; a DelugeNet's sum over earlier outputs happens as the next layer
reads them. What remains to be moved, for each pixel and value, is:

- stem: the image read, written in the maps' type with its padding, and read; the convolution's map written, and where there
  is a max pool read, and its result written;
- dense layer: all channels so far read, the 1×1 convolution's map written and read, the layer's channels written;
- transition, or the last block's norm: the buffer read, a quarter of the pixels written;
- DelugeNet's layer: all outputs so far read, two maps of the bottleneck written and read, one output written; the aggregate
  reads all outputs and writes what the next block reads.

:func:`traffic` adds this up; weights and means, of which a batch needs little, are left out. For DenseNet-121 at 224×224 in
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

from densefeat.errors import UsageError
from densefeat.features.engines.engine import BlockOutput, EngineSpec, joined_outputs
from densefeat.features.engines.folded import Composite, Conv, Deluge, Dense, Network

_ELEMENTS_AT_ONCE = 1 << 29  # of the largest map of a pass: 2 GiB in float32
_GRAPHS = 4  # kept at a time
_LEAST_CAPABILITY = (8, 0)
_SETTING_UP = threading.Lock()  # of all engines: a capture fails where another thread synchronises the device, as tuning does


def triton_obstacle(device: torch.device) -> str | None:
    """Why this engine cannot run on a device, or None."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"{device} is no NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if (capability := torch.cuda.get_device_capability(device)) < _LEAST_CAPABILITY:
        found, least = (".".join(map(str, pair)) for pair in (capability, _LEAST_CAPABILITY))
        return f"{device} has compute capability {found}, below {least}"
    return _missing_compiler()


def _missing_compiler() -> str | None:
    """Why Triton could not build its driver at the first launch, or None: the same search as its own."""
    if (named := os.environ.get("CC")) is not None:
        return None if shutil.which(named) else f"triton needs a C compiler, and CC={named} is none that can be run"
    if shutil.which("gcc") or shutil.which("clang"):
        return None
    return "triton needs a C compiler: install gcc or clang, or set CC"


class TritonEngine:
    """A network's blocks in Triton kernels, as CUDA graphs.

    A size of batch that comes a second time is captured as a graph; the last few are kept, in one pool of memory. Batches
    whose maps would be too large go in parts. Calls from several threads take turns, since they share the graphs' memory; on
    several streams, one waits for the other.

    Args:
        network: From ``fold``.
        wanted: ``device`` must be one for which :func:`triton_obstacle` gives None, or with TRITON_INTERPRET=1 the CPU.
    """

    def __init__(self, network: Network, wanted: EngineSpec) -> None:
        from densefeat.features.engines.triton.blocks import (
            NetworkStages,
        )  # triton need not be installed where this is not run
        from densefeat.features.engines.triton.kernels import INTERPRETED

        self.network, self.wanted = network, wanted
        self.stages = NetworkStages(network, wanted)
        self.captures = wanted.device.type == "cuda" and not INTERPRETED.value
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.graphs: OrderedDict[tuple[Any, ...], Graph | None] = OrderedDict()
        self.turn = threading.Lock()
        self.replayed = torch.cuda.Event() if self.captures else None  # the last graph, and its outputs copied

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        """As in ``Engine``. Raises UsageError for images of other channels, or too small for a block wanted."""
        channels = self.network.stem.conv.weight.shape[1]
        if x.ndim != 4 or x.shape[1] != channels or not len(x):
            raise UsageError(f"images of shape {tuple(x.shape)}: this network takes (N, {channels}, H, W)")
        height, width = x.shape[2:]
        last = self.wanted.blocks[-1] + 1
        sizes = _map_sizes(self.network, height, width)[: last + 1]
        if min(sizes[-1]) < 1:
            raise UsageError(f"images of {height}×{width} pixels are too small for block {last}")
        passes = ceil(len(x) / max(1, _ELEMENTS_AT_ONCE // _largest_map(self.network, sizes)))
        with self.turn, torch.cuda.device(self.wanted.device) if self.wanted.device.type == "cuda" else nullcontext():
            parts = [self.part(part, mean, maps) for part in x.split(ceil(len(x) / passes))]
        return [joined_outputs(of_block) for of_block in zip(*parts, strict=True)]

    def part(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        """Few enough images for one pass. The first of its size compiles and tunes, the second captures."""
        key = (*x.shape, mean, maps)
        if not (graph := self.graphs.get(key)):
            with _SETTING_UP:
                if not self.captures or key not in self.graphs:
                    self.keep(key, None)
                    return self.stages(self.stages.room(len(x), *x.shape[2:]).fill(x), mean, maps)
                graph = Graph(self, x, mean, maps)
        self.keep(key, graph)
        return graph.replay(x)

    def keep(self, key: tuple[Any, ...], graph: "Graph | None") -> None:
        self.graphs[key] = graph
        self.graphs.move_to_end(key)
        while len(self.graphs) > _GRAPHS:
            if self.replayed is not None:
                self.replayed.synchronize()  # it may still run on another stream than its memory is of
            self.graphs.popitem(last=False)


class Graph:
    """One size of batch, captured: its own images and outputs, what lies between shared with other graphs of the engine."""

    def __init__(self, engine: TritonEngine, x: torch.Tensor, mean: bool, maps: bool) -> None:
        assert engine.replayed is not None
        self.images, self.replayed = engine.stages.room(len(x), *x.shape[2:]), engine.replayed
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may decode and pin memory meanwhile
        with torch.cuda.graph(self.graph, pool=engine.pool, capture_error_mode="thread_local"):
            self.outputs = engine.stages(self.images, mean, maps)

    def replay(self, x: torch.Tensor) -> list[BlockOutput]:
        """After the engine's last replay, on whatever stream that was."""
        torch.cuda.current_stream().wait_event(self.replayed)
        self.images.fill(x)
        self.graph.replay()
        outputs = [BlockOutput(*(None if t is None else t.clone() for t in (out.mean, out.maps))) for out in self.outputs]
        self.replayed.record()
        return outputs


def _map_sizes(network: Network, height: int, width: int) -> list[tuple[int, int]]:
    """``(height, width)`` of the stem convolution's map, then of each block's, for images of one size."""

    def strided(size: int, conv: Conv) -> int:
        return (size + 2 * conv.padding - conv.weight.shape[-1]) // conv.stride + 1

    stem = network.stem
    sizes = [(strided(height, stem.conv), strided(width, stem.conv))]
    height, width = ((size - 1) // 2 + 1 if stem.pool else size for size in sizes[0])
    for block in network.blocks:
        if isinstance(block, Deluge) and isinstance(block.opener, Conv):
            height, width = strided(height, block.opener), strided(width, block.opener)
        sizes.append((height, width))
        if isinstance(block, Dense):
            height, width = height // 2, width // 2
    return sizes


def _largest_map(network: Network, sizes: list[tuple[int, int]]) -> int:
    """Values of one image in the largest tensor of a pass through the blocks that ``sizes`` has."""
    pixels = [height * width for height, width in sizes]
    held = [pixels[0] * len(network.stem.conv.weight)]
    for block, count in zip(network.blocks, pixels[1:], strict=False):
        outputs = len(block.norm.scale) if isinstance(block, Dense) else len(block.aggregate.bias) * (len(block.layers) + 1)
        held.append(count * outputs)
    return max(held)


def traffic(network: Network, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that an image's pass to the means of all blocks reads and writes: see the top of this file."""
    channels, border = network.stem.conv.weight.shape[1], 2 * network.stem.conv.padding
    stem, *pixels = (height * width for height, width in _map_sizes(network, height, width))
    written = len(network.stem.conv.weight)
    values = channels * (height * width + (height + border) * (width + border)) + written * stem
    if network.stem.pool:
        values += written * (stem + pixels[0])
    for i, (block, count) in enumerate(zip(network.blocks, pixels, strict=True)):
        if isinstance(block, Dense):
            values += _dense_values(block, count, count if i + 1 == len(pixels) else pixels[i + 1])
        else:
            values += _deluge_values(block, count, pixels[max(i - 1, 0)])
    return 4 * channels * height * width + values * dtype.itemsize


def _dense_values(block: Dense, pixels: int, pooled: int) -> int:
    values = pixels * len(block.norm.scale)
    for layer in block.layers:
        values += pixels * (len(layer.norm.scale) + sum(2 * len(conv.weight) for conv in layer.convs[:-1]))
        values += pixels * len(layer.convs[-1].weight)
    return values if block.transition is None else values + pooled * len(block.transition.weight)


def _deluge_values(block: Deluge, pixels: int, before: int) -> int:
    """``before``: pixels of the block's input."""
    opener, channels = block.opener, len(block.aggregate.bias)
    if isinstance(opener, Composite):
        values = _composite_values(opener, pixels)
    else:
        values = before * opener.weight.shape[1] + pixels * channels
    values += sum(_composite_values(layer, pixels) for layer in block.layers)
    return values + pixels * (block.aggregate.weights.numel() + (0 if block.relu else channels))


def _composite_values(layer: Composite, pixels: int) -> int:
    first, second, third = (len(conv.weight) for conv in layer.convs)
    return pixels * (layer.aggregate.weights.numel() + 2 * first + 2 * second + third)
