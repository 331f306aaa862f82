"""A DelugeNet block for :class:`BufferEngine`: a stack of outputs, of which each layer reads the first and adds one."""

from dataclasses import dataclass

import torch

from densefeat.features.engines.cpu.convolution import convolution
from densefeat.features.engines.cpu.memory import Memory, spatial_mean
from densefeat.features.engines.folded import Composite, Conv, Deluge, Sum


class DelugeStage:
    """The weights of a block."""

    def __init__(self, block: Deluge, number: int, dtype: torch.dtype) -> None:
        self.name = f"block{number + 1}"
        opener = block.opener  # for CIFAR's first block a composite layer that reads the stem alone
        self.opener = CompositeStep(opener, dtype) if isinstance(opener, Composite) else convolution(opener, dtype)
        self.layers = [CompositeStep(layer, dtype) for layer in block.layers]
        self.aggregate = WeightedSum(block.aggregate, dtype)
        self.relu = block.relu
        self.channels = block.aggregate.weights.numel()  # of all outputs together

    def run(self, x: torch.Tensor, memory: Memory) -> "DelugeRun":
        """``x (N, C, H, W)``: the block's input."""
        output = self.opener(Stack(x, memory, "stem")) if isinstance(self.opener, CompositeStep) else self.opener(x)
        stack = Stack(output, memory, self.name, 1 + len(self.layers))
        for layer in self.layers:
            output = layer(stack)
            stack.append(output)
        return DelugeRun(self.aggregate(stack), output, self.relu)


@dataclass
class DelugeRun:
    """The weighted sum of a block's outputs, which the next block reads, and the last of them."""

    sum: torch.Tensor
    last: torch.Tensor
    relu: bool

    def leave(self) -> torch.Tensor:
        return self.sum

    def mean(self, tap: str) -> torch.Tensor:
        return spatial_mean(self.read(tap))

    def maps(self, tap: str) -> torch.Tensor:
        return self.read(tap).clone()

    def read(self, tap: str) -> torch.Tensor:
        if tap == "raw":
            return self.last
        return self.sum.relu() if self.relu else self.sum


class Stack:
    """A block's outputs so far, each ``(N, C, H, W)``, in one storage: as a map, an output a row, a pixel a column."""

    def __init__(self, first: torch.Tensor, memory: Memory, name: str, most: int = 1) -> None:
        n, channels, height, width = self.shape = first.shape
        self.rows = memory.maps(name, 1, channels, most, n * height * width)
        self.count = 0
        self.append(first)

    def append(self, output: torch.Tensor) -> None:
        self.as_maps(self.rows[:, :, self.count : self.count + 1]).copy_(output)
        self.count += 1

    def seen(self) -> torch.Tensor:
        """``(1, C, count, N · H · W)`` in channels_last order."""
        return self.rows[:, :, : self.count]

    def as_maps(self, row: torch.Tensor) -> torch.Tensor:
        """``(1, C, 1, N · H · W)`` to ``(N, C, H, W)``."""
        n, channels, height, width = self.shape
        return row.permute(0, 2, 3, 1).view(n, height, width, channels).permute(0, 3, 1, 2)


class CompositeStep:
    """A composite layer: from a block's outputs so far, each ``(N, 2n, H, W)``, one more."""

    def __init__(self, layer: Composite, dtype: torch.dtype) -> None:
        self.aggregate = WeightedSum(layer.aggregate, dtype, relu=True)
        self.convs = [convolution(conv, dtype) for conv in layer.convs]

    def __call__(self, stack: Stack) -> torch.Tensor:
        x = self.aggregate(stack)
        for conv in self.convs:
            x = conv(x)
        return x


class WeightedSum:
    """``Σ_i weights[i, c] · x_i[c] + bias[c]``, the depthwise convolution that it is over a stack: outputs are read once."""

    def __init__(self, folded: Sum, dtype: torch.dtype, relu: bool = False) -> None:
        outputs, channels = folded.weights.shape
        weight = folded.weights.t().reshape(channels, 1, outputs, 1)
        self.conv = convolution(Conv(weight, folded.bias, 1, 0, relu), dtype, groups=channels)

    def __call__(self, stack: Stack) -> torch.Tensor:
        return stack.as_maps(self.conv(stack.seen()))
