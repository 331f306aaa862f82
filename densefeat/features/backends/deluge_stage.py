"""A DelugeNet block for :class:`BufferEngine`: n norms and their sum are one weighted sum over the block's outputs."""

from dataclasses import dataclass

import torch

from densefeat.features.backends.convolution import convolution
from densefeat.features.backends.folded import Composite, Deluge, Sum
from densefeat.features.backends.memory import Memory, groups, joined, spatial_mean


class DelugeStage:
    """The weights of a block."""

    def __init__(self, block: Deluge, dtype: torch.dtype) -> None:
        opener = block.opener  # for CIFAR's first block a composite layer that reads the stem alone
        self.opener = CompositeStep(opener, dtype) if isinstance(opener, Composite) else convolution(opener, dtype)
        self.layers = [CompositeStep(layer, dtype) for layer in block.layers]
        self.aggregate = WeightedSum(block.aggregate, dtype)
        self.relu = block.relu
        self.channels = block.aggregate.weights.numel()  # of all outputs together

    def run(self, x: torch.Tensor, memory: Memory) -> "DelugeRun":
        """``x (N, C, H, W)``: the block's input."""
        sums, lasts = [], []
        first = self.opener([x], memory) if isinstance(self.opener, CompositeStep) else self.opener(x)
        for images in groups(first, self.channels):
            outputs = [images]
            for layer in self.layers:
                outputs.append(layer(outputs, memory))
            sums.append(self.aggregate(outputs, torch.empty_like(images)))
            lasts.append(outputs[-1])
        return DelugeRun(joined(sums), joined(lasts), self.relu)


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


class CompositeStep:
    """A composite layer: from a block's outputs so far, each ``(N, 2n, H, W)``, one more."""

    def __init__(self, layer: Composite, dtype: torch.dtype) -> None:
        self.aggregate = WeightedSum(layer.aggregate, dtype)
        self.convs = [convolution(conv, dtype) for conv in layer.convs]

    def __call__(self, outputs: list[torch.Tensor], memory: Memory) -> torch.Tensor:
        x = self.aggregate(outputs, memory.like("sum", outputs[0])).relu_()
        for conv in self.convs:
            x = conv(x)
        return x


class WeightedSum:
    """``Σ_i weights[i, c] · x_i[c] + bias[c]``: each input is read once, the sum stays in the cache."""

    def __init__(self, folded: Sum, dtype: torch.dtype) -> None:
        self.weights = folded.weights.to(dtype)[:, None, :, None, None].unbind()
        self.bias = folded.bias.to(dtype).view(1, -1, 1, 1)

    def __call__(self, outputs: list[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        """n tensors ``(N, C, H, W)`` to ``out``, of the same shape."""
        torch.addcmul(self.bias, outputs[0], self.weights[0], out=out)
        for output, weight in zip(outputs[1:], self.weights[1:], strict=True):
            out.addcmul_(output, weight)
        return out
