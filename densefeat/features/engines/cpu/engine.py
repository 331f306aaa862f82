"""The engine for CPUs, in plain torch: a block is one buffer that its layers write into, a few images at a time.

A DenseNet's cost in practice is memory traffic: every layer concatenates, normalises and rectifies everything before it. Here
nothing is concatenated, since layers write their channels where later layers read them; norm and ReLU are one pass over the
map (:class:`Clip`) or part of a convolution; and only so many images go through a block together that its maps stay in the
caches.
"""

import threading
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from densefeat.features.engines.cpu.kernels import (
    Clip,
    Convolution,
    NormReLU,
    Workspace,
    make_convolution,
    spatial_mean,
    split_for_cache,
)
from densefeat.features.engines.cpu.lanes import Lanes
from densefeat.features.engines.engine import BlockOutput, EngineSpec, concat_images, concat_outputs
from densefeat.features.engines.finite import find_broken_blocks, propagate_nan
from densefeat.features.engines.folded import (
    FoldedCompositeLayer,
    FoldedConv,
    FoldedDelugeBlock,
    FoldedDenseBlock,
    FoldedDenseLayer,
    FoldedNetwork,
    FoldedStem,
    FoldedSum,
)

_CHUNK_BYTES = 48 * 2**20  # of all blocks' buffers: the images that go through the network together


class BufferEngine:
    """An :class:`Engine` for the CPU. Calls from several threads take turns, since they share the buffers."""

    def __init__(self, network: FoldedNetwork, spec: EngineSpec) -> None:
        self.spec = spec
        self.stem = BufferStem(network.stem, spec.dtype)
        self.blocks = [
            BufferDenseBlock(block, f"block{i}", spec.dtype)
            if isinstance(block, FoldedDenseBlock)
            else BufferDelugeBlock(block, f"block{i}", spec.dtype)
            for i, block in enumerate(network.blocks[: spec.blocks[-1] + 1])
        ]
        self.broken = find_broken_blocks(network, spec)
        self.lanes = Lanes()
        self.workspaces = [Workspace(spec.dtype) for _ in range(self.lanes.limit)]
        self.turn = threading.Lock()

    def __call__(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        with self.turn:
            parts = [part for parts in self.lanes.map(partial(self.run_chunks, mean, maps), x) for part in parts]
        outputs = [concat_outputs(block_parts) for block_parts in zip(*parts, strict=True)]
        propagate_nan(x, outputs, self.broken)
        return outputs

    @torch.no_grad()
    def run_chunks(self, mean: bool, maps: bool, lane: int, x: torch.Tensor) -> list[list[BlockOutput]]:
        chunks = x.chunk(-(-len(x) // self.chunk_size(*x.shape[2:])))
        outputs = [self.run(images, self.workspaces[lane], mean, maps) for images in chunks]
        self.workspaces[lane].release(2 * _CHUNK_BYTES)
        return outputs

    def chunk_size(self, height: int, width: int) -> int:
        """Count the images of this size whose buffers fill ``_CHUNK_BYTES``."""
        pixels = height * width // self.stem.reduction**2
        elements = sum(block.channels * pixels // 4**i for i, block in enumerate(self.blocks))
        return max(1, _CHUNK_BYTES // max(1, elements * self.spec.dtype.itemsize))

    def run(self, x: torch.Tensor, workspace: Workspace, mean: bool, maps: bool) -> list[BlockOutput]:
        """Run the network once, block by block."""
        tap = self.spec.tap
        x = self.stem(x)
        outputs = []
        for i, block in enumerate(self.blocks):
            features = block(x, workspace)
            if block is not self.blocks[-1]:
                x = features.next_input()
            if i in self.spec.blocks:
                outputs.append(BlockOutput(features.mean(tap) if mean else None, features.maps(tap) if maps else None))
        return outputs


class BufferStem:
    """A stem: a convolution, and for ImageNet a max pool."""

    def __init__(self, stem: FoldedStem, dtype: torch.dtype) -> None:
        self.conv = make_convolution(stem.conv, dtype)
        self.pool, self.dtype = stem.pool, dtype
        self.reduction = stem.conv.stride * (2 if stem.pool else 1)
        self.channels = len(stem.conv.weight) // stem.conv.stride**2  # of the convolution's map, for each pixel of an image

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images to the first block's input."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return concat_images([self.run_group(images) for images in split_for_cache(x, self.channels)])

    def run_group(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images)
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.pool else x


class BufferDenseBlock:
    """A dense block with the norm and the transition that read it.

    Its maps are one buffer: each layer reads the first channels and writes the next ones.
    """

    def __init__(self, block: FoldedDenseBlock, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.layers = [BufferDenseLayer(layer, dtype) for layer in block.layers]
        self.channels = len(block.norm.scale)
        self.norm = NormReLU(block.norm, dtype)
        self.clip = Clip(block.norm, dtype)
        self.transition: Convolution | None = None
        if block.transition is not None:
            self.transition = make_convolution(self.clip.fold_into(block.transition), dtype)

    def __call__(self, x: torch.Tensor, workspace: Workspace) -> "DenseBlockFeatures":
        """Copy the block's input ``x (N, C, H, W)`` into the buffer's first channels, then let the layers fill the others."""
        n, channels, height, width = x.shape
        buffer = workspace.maps(self.name, n, self.channels, height, width)
        buffer[:, :channels] = x
        for images in split_for_cache(buffer, self.channels):
            for layer in self.layers:
                layer(images, workspace)
        return DenseBlockFeatures(self, buffer, workspace)


class BufferDenseLayer:
    """A dense layer: norm, ReLU, 1×1 convolution with norm and ReLU, 3×3 convolution; without bottleneck only the latter."""

    def __init__(self, layer: FoldedDenseLayer, dtype: torch.dtype) -> None:
        first, *rest = layer.convs
        self.norm: Clip | NormReLU
        if rest:
            self.norm = Clip(layer.norm, dtype)
            first = self.norm.fold_into(first)
        else:  # a convolution pads with zeros after the norm: a threshold left to it would be missing at the border
            self.norm = NormReLU(layer.norm, dtype)
        self.convs = [make_convolution(conv, dtype) for conv in (first, *rest)]
        self.start = len(layer.norm.scale)
        self.end = self.start + len(layer.convs[-1].weight)

    def __call__(self, buffer: torch.Tensor, workspace: Workspace) -> None:
        """Read the buffer's channels up to ``start`` and write those from ``start`` to ``end``."""
        x = buffer[:, : self.start]
        x = self.norm(x, workspace.maps_like("normalised", x))
        for conv in self.convs:
            x = conv(x)
        buffer[:, self.start : self.end] = x


class DenseBlockFeatures:
    """The features of a dense block whose buffer is full, and the next block's input."""

    def __init__(self, block: BufferDenseBlock, buffer: torch.Tensor, workspace: Workspace) -> None:
        self.block, self.buffer, self.workspace = block, buffer, workspace
        self.pooled: torch.Tensor | None = None

    def next_input(self) -> torch.Tensor:
        """Apply the transition. It pools before it convolves: the same result for a quarter of the arithmetic."""
        assert self.block.transition is not None
        self.pooled = concat_images([F.avg_pool2d(clipped, 2) for clipped in self.clip_groups()])
        return self.block.transition(self.pooled)

    def mean(self, tap: str) -> torch.Tensor:
        if tap == "raw":
            return spatial_mean(self.buffer)
        height, width = self.buffer.shape[2:]
        if self.pooled is not None and height % 2 == width % 2 == 0:  # pooling leaves out an odd row or column
            return self.block.clip.mean(self.pooled)
        return concat_images([self.block.clip.mean(clipped) for clipped in self.clip_groups()])

    def maps(self, tap: str) -> torch.Tensor:
        return self.buffer.clone() if tap == "raw" else self.block.norm(self.buffer, torch.empty_like(self.buffer))

    def clip_groups(self) -> Iterator[torch.Tensor]:
        """Clip a few images at a time; each group overwrites the one before."""
        for images in split_for_cache(self.buffer, self.block.channels):
            yield self.block.clip(images, self.workspace.maps_like("normalised", images))


class BufferDelugeBlock:
    """A DelugeNet block: a stack of outputs, from which each composite layer computes one more."""

    def __init__(self, block: FoldedDelugeBlock, name: str, dtype: torch.dtype) -> None:
        self.name = name
        opener = block.opener
        self.opener = (
            BufferCompositeLayer(opener, dtype) if isinstance(opener, FoldedCompositeLayer) else make_convolution(opener, dtype)
        )
        self.layers = [BufferCompositeLayer(layer, dtype) for layer in block.layers]
        self.aggregate = WeightedSum(block.aggregate, dtype)
        self.relu = block.relu
        self.channels = block.aggregate.weights.numel()  # of all outputs together

    def __call__(self, x: torch.Tensor, workspace: Workspace) -> "DelugeBlockFeatures":
        """Compute all outputs from the block's input ``x (N, C, H, W)``."""
        if isinstance(self.opener, BufferCompositeLayer):  # in CIFAR networks the first layer reads a stack of the stem alone
            output = self.opener(OutputStack(x, workspace, "stem"))
        else:
            output = self.opener(x)
        stack = OutputStack(output, workspace, self.name, 1 + len(self.layers))
        for layer in self.layers:
            output = layer(stack)
            stack.append(output)
        return DelugeBlockFeatures(self.aggregate(stack), output, self.relu)


class BufferCompositeLayer:
    """A composite layer: norm and sum of all outputs so far, ReLU, and a bottleneck of three convolutions."""

    def __init__(self, layer: FoldedCompositeLayer, dtype: torch.dtype) -> None:
        self.aggregate = WeightedSum(layer.aggregate, dtype, relu=True)
        self.convs = [make_convolution(conv, dtype) for conv in layer.convs]

    def __call__(self, stack: "OutputStack") -> torch.Tensor:
        x = self.aggregate(stack)
        for conv in self.convs:
            x = conv(x)
        return x


class WeightedSum:
    """A cross-layer depthwise layer: ``Σ_i weights[i, c] · x_i[c] + bias[c]``.

    Over a stack of outputs it is a depthwise convolution, which reads each output once.
    """

    def __init__(self, layer: FoldedSum, dtype: torch.dtype, relu: bool = False) -> None:
        outputs, channels = layer.weights.shape
        weight = layer.weights.t().reshape(channels, 1, outputs, 1)
        self.conv = make_convolution(FoldedConv(weight, layer.bias, 1, 0, relu), dtype, groups=channels)

    def __call__(self, stack: "OutputStack") -> torch.Tensor:
        return stack.as_maps(self.conv(stack.filled()))


class OutputStack:
    """The outputs of a block so far, each ``(N, C, H, W)``, in one storage.

    The storage is a map ``(1, C, outputs, N · H · W)``: each row is an output, each column a pixel.
    """

    def __init__(self, first: torch.Tensor, workspace: Workspace, name: str, capacity: int = 1) -> None:
        n, channels, height, width = self.shape = first.shape
        self.rows = workspace.maps(name, 1, channels, capacity, n * height * width)
        self.count = 0
        self.append(first)

    def append(self, output: torch.Tensor) -> None:
        self.as_maps(self.rows[:, :, self.count : self.count + 1]).copy_(output)
        self.count += 1

    def filled(self) -> torch.Tensor:
        """Return the rows of the outputs so far, ``(1, C, count, N · H · W)``."""
        return self.rows[:, :, : self.count]

    def as_maps(self, row: torch.Tensor) -> torch.Tensor:
        """View ``(1, C, 1, N · H · W)`` as ``(N, C, H, W)``."""
        n, channels, height, width = self.shape
        return row.permute(0, 2, 3, 1).view(n, height, width, channels).permute(0, 3, 1, 2)


class DelugeBlockFeatures:
    """The features of a DelugeNet block, and the next block's input.

    Args:
        total: The aggregate of all outputs, which the next block reads.
        last: The last output.
        relu: Whether a ReLU follows the aggregate.
    """

    def __init__(self, total: torch.Tensor, last: torch.Tensor, relu: bool) -> None:
        self.total, self.last, self.relu = total, last, relu

    def next_input(self) -> torch.Tensor:
        return self.total

    def mean(self, tap: str) -> torch.Tensor:
        return spatial_mean(self.select_maps(tap))

    def maps(self, tap: str) -> torch.Tensor:
        return self.select_maps(tap).clone()

    def select_maps(self, tap: str) -> torch.Tensor:
        if tap == "raw":
            return self.last
        return self.total.relu() if self.relu else self.total
