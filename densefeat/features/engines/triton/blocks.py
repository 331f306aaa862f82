"""Stems and blocks as launches of the Triton kernels, made from the folded network."""

from dataclasses import dataclass
from typing import Protocol

import torch

from densefeat.features.engines.engine import BlockOutput, EngineSpec
from densefeat.features.engines.folded import (
    FoldedCompositeLayer,
    FoldedConv,
    FoldedDelugeBlock,
    FoldedDenseBlock,
    FoldedDenseLayer,
    FoldedNetwork,
    FoldedStem,
)
from densefeat.features.engines.triton import ops
from densefeat.features.engines.triton.ops import Filters, PixelRows, ScaleShift


@dataclass(frozen=True)
class OutputRequest:
    """The features that one block has to return: of which tap, and whether means, maps or both."""

    tap: str
    mean: bool
    maps: bool


@dataclass(frozen=True)
class PaddedImages:
    """A batch of images with zeros at their borders, ``pixels (N, C, H + 2 padding, W + 2 padding)``, as the stem reads them.

    ``offsets (C · kH · kW,)``, int32, lead from the first value of a convolution's window to each value of it.
    """

    pixels: torch.Tensor
    offsets: torch.Tensor
    padding: int

    def fill(self, x: torch.Tensor) -> "PaddedImages":
        """Copy images ``(N, C, H, W)`` of any type and device into the pixels."""
        border = self.padding
        self.pixels[:, :, border : border + x.shape[2], border : border + x.shape[3]].copy_(x)
        return self


class TritonStem:
    """A stem, which writes the first block's input."""

    def __init__(self, stem: FoldedStem, device: torch.device, dtype: torch.dtype) -> None:
        self.conv, self.pool = stem.conv, stem.pool
        self.filters = Filters.from_stem(stem.conv, device, dtype)
        self.device, self.dtype = device, dtype

    def allocate_input(self, images: int, height: int, width: int) -> PaddedImages:
        _, channels, kernel_height, kernel_width = self.conv.weight.shape
        border = 2 * self.conv.padding
        pixels = torch.zeros(images, channels, height + border, width + border, dtype=self.dtype, device=self.device)
        plane, line, column = (
            torch.arange(count, dtype=torch.int32) * step
            for count, step in zip((channels, kernel_height, kernel_width), pixels.stride()[1:], strict=True)
        )
        offsets = (plane[:, None, None] + line[:, None] + column).flatten()
        return PaddedImages(pixels, offsets.to(self.device), self.conv.padding)

    def __call__(self, images: PaddedImages, next_block: "TritonBlock") -> PixelRows:
        count, channels = len(images.pixels), self.filters.outputs
        height, width = (
            (size - kernel) // self.conv.stride + 1
            for size, kernel in zip(images.pixels.shape[2:], self.conv.weight.shape[2:], strict=True)
        )
        if not self.pool:
            x = next_block.allocate_input(count, height, width)
            ops.stem_conv(images.pixels, images.offsets, self.filters, self.conv.stride, x.slice_channels(0, channels))
            return x
        full = PixelRows.empty(count, height, width, channels, images.pixels)
        ops.stem_conv(images.pixels, images.offsets, self.filters, self.conv.stride, full)
        x = next_block.allocate_input(count, (height - 1) // 2 + 1, (width - 1) // 2 + 1)
        ops.max_pool(full, x.slice_channels(0, channels))
        return x


class TritonBlock(Protocol):
    """A block of a network."""

    def allocate_input(self, images: int, height: int, width: int) -> PixelRows:
        """Allocate maps whose first channels are the block's input."""

    def __call__(self, x: PixelRows, request: OutputRequest, next_block: "TritonBlock | None") -> tuple[BlockOutput, PixelRows]:
        """Return the requested features and the next block's input, which that block allocates; ``x`` after the last block."""


class TritonDenseBlock:
    """A dense block with the norm and transition that read it. Its maps are one buffer that all layers write into."""

    def __init__(self, block: FoldedDenseBlock, device: torch.device, dtype: torch.dtype) -> None:
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.layers = [TritonDenseLayer(layer, device, dtype) for layer in block.layers]
        self.norm = ScaleShift.from_folded(block.norm, device)
        self.transition = None if block.transition is None else Filters.from_conv(block.transition, device, dtype)
        self.channels = len(block.norm.scale)

    def allocate_input(self, images: int, height: int, width: int) -> PixelRows:
        """Allocate the block's buffer, whose first channels are the input."""
        return PixelRows.empty(images, height, width, self.channels, self.like)

    def __call__(self, x: PixelRows, request: OutputRequest, next_block: TritonBlock | None) -> tuple[BlockOutput, PixelRows]:
        bottleneck = PixelRows.empty(x.images, x.height, x.width, self.layers[0].filters[0].outputs, self.like)
        for layer in self.layers:
            layer(x, bottleneck)
        if next_block is None or self.transition is None:
            return self.read_features(x, request), x
        next_input = next_block.allocate_input(x.images, x.height // 2, x.width // 2)
        out = next_input.slice_channels(0, self.transition.outputs)
        mean = ops.transition(x, self.norm, self.transition, out, request.tap if request.mean and not request.maps else None)
        return self.read_features(x, request) if request.maps else BlockOutput(mean, None), next_input

    def read_features(self, buffer: PixelRows, request: OutputRequest) -> BlockOutput:
        after_norm = request.tap == "norm"
        maps = None
        if request.maps:
            maps = PixelRows.empty(buffer.images, buffer.height, buffer.width, self.channels, self.like)
        mean = ops.combine(buffer, self.norm if after_norm else None, after_norm, maps, request.mean)
        return BlockOutput(mean, None if maps is None else maps.nchw())


class TritonDenseLayer:
    """A dense layer, which reads the buffer's first channels and writes those after them."""

    def __init__(self, layer: FoldedDenseLayer, device: torch.device, dtype: torch.dtype) -> None:
        self.norm = ScaleShift.from_folded(layer.norm, device)
        self.filters = [Filters.from_conv(conv, device, dtype) for conv in layer.convs]
        self.channels = len(layer.norm.scale)

    def __call__(self, buffer: PixelRows, bottleneck: PixelRows) -> None:
        """Run the layer; ``bottleneck`` holds the 1×1 convolution's map."""
        x = buffer.slice_channels(0, self.channels)
        out = buffer.slice_channels(self.channels, self.filters[-1].outputs)
        if len(self.filters) == 1:
            ops.conv3x3(x, self.filters[0], out, self.norm)
            return
        ops.pointwise(x, self.filters[0], bottleneck, self.norm)
        ops.conv3x3(bottleneck, self.filters[1], out)


class TritonDelugeBlock:
    """A DelugeNet block. Its outputs lie one after another in one stack, so that layers sum them as they read."""

    def __init__(self, block: FoldedDelugeBlock, device: torch.device, dtype: torch.dtype) -> None:
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.opener: Filters | TritonCompositeLayer
        if isinstance(block.opener, FoldedConv):
            self.opener = Filters.from_conv(block.opener, device, dtype)
            self.stride, self.input_channels = block.opener.stride, self.opener.channels
        else:
            self.opener = TritonCompositeLayer(block.opener, device, dtype)
            self.stride, self.input_channels = 1, block.opener.aggregate.weights.shape[1]
        self.layers = [TritonCompositeLayer(layer, device, dtype) for layer in block.layers]
        self.aggregate = ScaleShift.from_folded(block.aggregate, device)
        self.channels, self.relu = len(block.aggregate.bias), block.relu

    def allocate_input(self, images: int, height: int, width: int) -> PixelRows:
        return PixelRows.empty(images, height, width, self.input_channels, self.like)

    def __call__(self, x: PixelRows, request: OutputRequest, next_block: TritonBlock | None) -> tuple[BlockOutput, PixelRows]:
        count = len(self.layers) + 1
        height, width = ((size - 1) // self.stride + 1 for size in (x.height, x.width))
        stack = PixelRows.empty(x.images * count, height, width, self.channels, self.like).rows.unflatten(0, (count, -1))
        outputs = [PixelRows(rows, x.images, height, width, self.channels) for rows in stack]
        self.run_opener(x, outputs[0])
        for layer, out in zip(self.layers, outputs[1:], strict=True):
            layer(outputs[0], out, stack)
        return self.read_features(outputs, stack, request, next_block)

    def run_opener(self, x: PixelRows, out: PixelRows) -> None:
        if isinstance(self.opener, TritonCompositeLayer):
            self.opener(x, out, None)
        elif self.stride == 2:
            ops.conv3x3_stride2(x, self.opener, out)
        else:
            ops.pointwise(x, self.opener, out)

    def read_features(
        self, outputs: list[PixelRows], stack: torch.Tensor, request: OutputRequest, next_block: TritonBlock | None
    ) -> tuple[BlockOutput, PixelRows]:
        """Compute the aggregate of all outputs, for the next block and for tap "norm". Tap "raw" is the last output."""
        last = outputs[-1]
        size = (last.images, last.height, last.width)
        maps = PixelRows.empty(*size, self.channels, self.like) if request.maps else None
        aggregate = None if next_block is None else next_block.allocate_input(*size)
        if request.tap == "norm":
            aggregate = maps if aggregate is None else aggregate
            mean = ops.combine(outputs[0], self.aggregate, self.relu, aggregate, request.mean, stack)
            maps = aggregate if request.maps else None
        else:
            if aggregate is not None:
                ops.combine(outputs[0], self.aggregate, self.relu, aggregate, False, stack)
            mean = ops.combine(last, None, False, maps, request.mean)
        return BlockOutput(mean, None if maps is None else maps.nchw()), last if aggregate is None else aggregate


class TritonCompositeLayer:
    """A composite layer: ReLU of the aggregate of a block's outputs so far, then a bottleneck of three convolutions."""

    def __init__(self, layer: FoldedCompositeLayer, device: torch.device, dtype: torch.dtype) -> None:
        self.aggregate = ScaleShift.from_folded(layer.aggregate, device)
        self.filters = [Filters.from_conv(conv, device, dtype) for conv in layer.convs]

    def __call__(self, x: PixelRows, out: PixelRows, stack: torch.Tensor | None) -> None:
        """Read ``x``, the first output of ``stack``, and as many more as the aggregate has weights for; write ``out``."""
        first, second = (PixelRows.empty(x.images, x.height, x.width, conv.outputs, x.rows) for conv in self.filters[:2])
        ops.pointwise(x, self.filters[0], first, self.aggregate, stack)
        ops.conv3x3(first, self.filters[1], second)
        ops.pointwise(second, self.filters[2], out)


class TritonNetwork:
    """A network up to the last block of the spec."""

    def __init__(self, network: FoldedNetwork, spec: EngineSpec) -> None:
        self.spec = spec
        self.stem = TritonStem(network.stem, spec.device, spec.dtype)
        self.blocks: list[TritonBlock] = [
            TritonDenseBlock(block, spec.device, spec.dtype)
            if isinstance(block, FoldedDenseBlock)
            else TritonDelugeBlock(block, spec.device, spec.dtype)
            for block in network.blocks[: spec.blocks[-1] + 1]
        ]

    def allocate_input(self, images: int, height: int, width: int) -> PaddedImages:
        return self.stem.allocate_input(images, height, width)

    def __call__(self, images: PaddedImages, mean: bool, maps: bool) -> list[BlockOutput]:
        """Return one output for each block of the spec.

        It only allocates memory and launches kernels, so that a CUDA graph can capture it.
        """
        outputs = []
        x = self.stem(images, self.blocks[0])
        for i, (block, next_block) in enumerate(zip(self.blocks, (*self.blocks[1:], None), strict=True)):
            requested = i in self.spec.blocks
            output, x = block(x, OutputRequest(self.spec.tap, requested and mean, requested and maps), next_block)
            if requested:
                outputs.append(output)
        return outputs
