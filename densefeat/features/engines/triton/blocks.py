"""Stems and blocks as launches of the Triton kernels, from the folded network."""

from dataclasses import dataclass
from typing import Protocol

import torch

from densefeat.features.engines.engine import BlockOutput, EngineSpec
from densefeat.features.engines.folded import Composite, Conv, Deluge, Dense, Layer, Network, Stem
from densefeat.features.engines.triton import ops as ops
from densefeat.features.engines.triton.ops import Filters, Maps, ScaleShift


@dataclass(frozen=True)
class Asked:
    """Of one block."""

    tap: str
    mean: bool
    maps: bool


@dataclass(frozen=True)
class Images:
    """``pixels (N, C, H + 2 padding, W + 2 padding)``, zero at the edges, and the stem's way through them.

    ``offsets (C · kH · kW,)``, int32, lead from the first value of the convolution's window to each.
    """

    pixels: torch.Tensor
    offsets: torch.Tensor
    padding: int

    def fill(self, x: torch.Tensor) -> "Images":
        """With images ``(N, C, H, W)`` of any type and device."""
        border = self.padding
        self.pixels[:, :, border : border + x.shape[2], border : border + x.shape[3]].copy_(x)
        return self


class StemStage:
    """Images to the first block's input."""

    def __init__(self, stem: Stem, device: torch.device, dtype: torch.dtype) -> None:
        self.conv, self.pool = stem.conv, stem.pool
        self.filters = Filters.of_stem(stem.conv, device, dtype)
        self.device, self.dtype = device, dtype

    def room(self, images: int, height: int, width: int) -> Images:
        _, channels, kernel_height, kernel_width = self.conv.weight.shape
        border = 2 * self.conv.padding
        pixels = torch.zeros(images, channels, height + border, width + border, dtype=self.dtype, device=self.device)
        plane, line, column = (
            torch.arange(count, dtype=torch.int32) * step
            for count, step in zip((channels, kernel_height, kernel_width), pixels.stride()[1:], strict=True)
        )
        offsets = (plane[:, None, None] + line[:, None] + column).flatten()
        return Images(pixels, offsets.to(self.device), self.conv.padding)

    def __call__(self, images: Images, following: "Stage") -> Maps:
        count, channels = len(images.pixels), self.filters.outputs
        height, width = (
            (size - kernel) // self.conv.stride + 1
            for size, kernel in zip(images.pixels.shape[2:], self.conv.weight.shape[2:], strict=True)
        )
        if not self.pool:
            x = following.room(count, height, width)
            ops.stem_conv(images.pixels, images.offsets, self.filters, self.conv.stride, x.part(0, channels))
            return x
        full = Maps.empty(count, height, width, channels, images.pixels)
        ops.stem_conv(images.pixels, images.offsets, self.filters, self.conv.stride, full)
        x = following.room(count, (height - 1) // 2 + 1, (width - 1) // 2 + 1)
        ops.max_pool(full, x.part(0, channels))
        return x


class Stage(Protocol):
    """One block."""

    def room(self, images: int, height: int, width: int) -> Maps:
        """For the block's input, which goes into its first channels."""

    def __call__(self, x: Maps, asked: Asked, following: "Stage | None") -> tuple[BlockOutput, Maps]:
        """What is asked, and the next block's input in that block's room; where none follows ``x``."""


class DenseStage:
    """A dense block, then the transition into the next block's buffer."""

    def __init__(self, block: Dense, device: torch.device, dtype: torch.dtype) -> None:
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.layers = [DenseStep(layer, device, dtype) for layer in block.layers]
        self.affine = ScaleShift.of(block.norm, device)
        self.transition = None if block.transition is None else Filters.of(block.transition, device, dtype)
        self.channels = len(block.norm.scale)

    def room(self, images: int, height: int, width: int) -> Maps:
        """The block's buffer; its input goes first."""
        return Maps.empty(images, height, width, self.channels, self.like)

    def __call__(self, x: Maps, asked: Asked, following: Stage | None) -> tuple[BlockOutput, Maps]:
        between = Maps.empty(x.images, x.height, x.width, self.layers[0].filters[0].outputs, self.like)
        for layer in self.layers:
            layer(x, between)
        if following is None or self.transition is None:
            return self.read(x, asked), x
        after = following.room(x.images, x.height // 2, x.width // 2)
        tap = asked.tap if asked.mean and not asked.maps else None
        mean = ops.transition(x, self.affine, self.transition, after.part(0, self.transition.outputs), tap)
        return self.read(x, asked) if asked.maps else BlockOutput(mean, None), after

    def read(self, buffer: Maps, asked: Asked) -> BlockOutput:
        norm = asked.tap == "norm"
        maps = Maps.empty(buffer.images, buffer.height, buffer.width, self.channels, self.like) if asked.maps else None
        mean = ops.combine(buffer, self.affine if norm else None, norm, maps, asked.mean)
        return BlockOutput(mean, None if maps is None else maps.nchw())


class DenseStep:
    """Reads the buffer's first channels, writes those after them."""

    def __init__(self, layer: Layer, device: torch.device, dtype: torch.dtype) -> None:
        self.affine = ScaleShift.of(layer.norm, device)
        self.filters = [Filters.of(conv, device, dtype) for conv in layer.convs]
        self.channels = len(layer.norm.scale)

    def __call__(self, buffer: Maps, between: Maps) -> None:
        """``between`` is room for the 1×1 convolution's map."""
        x, out = buffer.part(0, self.channels), buffer.part(self.channels, self.filters[-1].outputs)
        if len(self.filters) == 1:
            ops.conv3x3(x, self.filters[0], out, self.affine)
            return
        ops.pointwise(x, self.filters[0], between, self.affine)
        ops.conv3x3(between, self.filters[1], out)


class DelugeStage:
    """A DelugeNet block: its outputs lie one after another, for the layers to sum as they read."""

    def __init__(self, block: Deluge, device: torch.device, dtype: torch.dtype) -> None:
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.opener: Filters | CompositeStep
        if isinstance(block.opener, Conv):
            self.opener = Filters.of(block.opener, device, dtype)
            self.stride, self.input_channels = block.opener.stride, self.opener.channels
        else:
            self.opener = CompositeStep(block.opener, device, dtype)
            self.stride, self.input_channels = 1, block.opener.aggregate.weights.shape[1]
        self.layers = [CompositeStep(layer, device, dtype) for layer in block.layers]
        self.aggregate = ScaleShift.of(block.aggregate, device)
        self.channels, self.relu = len(block.aggregate.bias), block.relu

    def room(self, images: int, height: int, width: int) -> Maps:
        return Maps.empty(images, height, width, self.input_channels, self.like)

    def __call__(self, x: Maps, asked: Asked, following: Stage | None) -> tuple[BlockOutput, Maps]:
        height, width = ((size - 1) // self.stride + 1 for size in (x.height, x.width))
        room = Maps.empty(x.images * (len(self.layers) + 1), height, width, self.channels, self.like)
        stack = room.rows.unflatten(0, (len(self.layers) + 1, -1))
        outputs = [Maps(rows, x.images, height, width, self.channels) for rows in stack]
        self.open(x, outputs[0])
        for layer, out in zip(self.layers, outputs[1:], strict=True):
            layer(outputs[0], out, stack)
        return self.read(outputs, stack, asked, following)

    def open(self, x: Maps, out: Maps) -> None:
        if isinstance(self.opener, CompositeStep):
            self.opener(x, out, None)
        elif self.stride == 2:
            ops.conv3x3_stride2(x, self.opener, out)
        else:
            ops.pointwise(x, self.opener, out)

    def read(self, outputs: list[Maps], stack: torch.Tensor, asked: Asked, following: Stage | None) -> tuple[BlockOutput, Maps]:
        """The outputs' weighted sum, for the next block and the tap "norm"; the last of them for the tap "raw"."""
        last, norm = outputs[-1], asked.tap == "norm"
        size = (last.images, last.height, last.width)
        room = Maps.empty(*size, self.channels, self.like) if asked.maps else None
        x = None if following is None else following.room(*size)
        if norm:
            x = room if x is None else x
            mean = ops.combine(outputs[0], self.aggregate, self.relu, x, asked.mean, stack)
            maps = x if asked.maps else None
        else:
            if x is not None:
                ops.combine(outputs[0], self.aggregate, self.relu, x, False, stack)
            mean, maps = ops.combine(last, None, False, room, asked.mean), room
        return BlockOutput(mean, None if maps is None else maps.nchw()), last if x is None else x


class CompositeStep:
    """A bottleneck over the ReLU of a weighted sum of a block's outputs so far."""

    def __init__(self, layer: Composite, device: torch.device, dtype: torch.dtype) -> None:
        self.affine = ScaleShift.of(layer.aggregate, device)
        self.filters = [Filters.of(conv, device, dtype) for conv in layer.convs]

    def __call__(self, x: Maps, out: Maps, stack: torch.Tensor | None) -> None:
        first, second = (Maps.empty(x.images, x.height, x.width, each.outputs, x.rows) for each in self.filters[:2])
        ops.pointwise(x, self.filters[0], first, self.affine, stack)
        ops.conv3x3(first, self.filters[1], second)
        ops.pointwise(second, self.filters[2], out)


class NetworkStages:
    """All of a network up to the last block wanted."""

    def __init__(self, network: Network, wanted: EngineSpec) -> None:
        made = (wanted.device, wanted.dtype)
        self.wanted = wanted
        self.stem = StemStage(network.stem, *made)
        self.blocks: list[Stage] = [
            DenseStage(block, *made) if isinstance(block, Dense) else DelugeStage(block, *made)
            for block in network.blocks[: wanted.blocks[-1] + 1]
        ]

    def room(self, images: int, height: int, width: int) -> Images:
        return self.stem.room(images, height, width)

    def __call__(self, images: Images, mean: bool, maps: bool) -> list[BlockOutput]:
        """One output a block wanted. Allocations and launches alone: it can be captured."""
        outputs = []
        x = self.stem(images, self.blocks[0])
        for i, (block, following) in enumerate(zip(self.blocks, (*self.blocks[1:], None), strict=True)):
            wanted = i in self.wanted.blocks
            output, x = block(x, Asked(self.wanted.tap, wanted and mean, wanted and maps), following)
            if wanted:
                outputs.append(output)
        return outputs
