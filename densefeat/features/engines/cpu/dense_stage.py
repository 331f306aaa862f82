"""A dense block for :class:`BufferEngine`: one buffer, of which each layer reads the first channels and writes the next."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from densefeat.features.engines.cpu.clip import Clip
from densefeat.features.engines.cpu.convolution import Convolution, convolution
from densefeat.features.engines.cpu.memory import Memory, groups, spatial_mean
from densefeat.features.engines.engine import joined
from densefeat.features.engines.folded import Dense, Layer, Norm


class DenseStage:
    """The weights of a block and of the norm and transition that read it."""

    def __init__(self, block: Dense, number: int, dtype: torch.dtype) -> None:
        self.name = f"block{number + 1}"
        self.layers = [DenseStep(layer, dtype) for layer in block.layers]
        self.channels = len(block.norm.scale)
        self.norm = Affine(block.norm, dtype)
        self.clip = Clip(block.norm, dtype)
        self.transition: Convolution | None = None
        if block.transition is not None:
            self.transition = convolution(self.clip.folded_into(block.transition), dtype)

    def run(self, x: torch.Tensor, memory: Memory) -> "DenseRun":
        """``x (N, C, H, W)``: the block's input, which becomes the buffer's first channels."""
        n, channels, height, width = x.shape
        buffer = memory.maps(self.name, n, self.channels, height, width)
        buffer[:, :channels] = x
        for images in groups(buffer, self.channels):
            for layer in self.layers:
                layer(images, memory)
        return DenseRun(self, buffer, memory)


class DenseRun:
    """A full buffer: :meth:`leave` makes of it what the next block reads; :meth:`mean` and :meth:`maps` are the features."""

    def __init__(self, stage: DenseStage, buffer: torch.Tensor, memory: Memory) -> None:
        self.stage, self.buffer, self.memory = stage, buffer, memory
        self.pooled: torch.Tensor | None = None

    def leave(self) -> torch.Tensor:
        """Pooled before the convolution: the same, for a quarter of the arithmetic."""
        assert self.stage.transition is not None
        self.pooled = joined([F.avg_pool2d(clipped, 2) for clipped in self.clipped()])
        return self.stage.transition(self.pooled)

    def mean(self, tap: str) -> torch.Tensor:
        if tap == "raw":
            return spatial_mean(self.buffer)
        height, width = self.buffer.shape[2:]
        if self.pooled is not None and height % 2 == width % 2 == 0:
            return self.stage.clip.mean(self.pooled)
        return joined([self.stage.clip.mean(clipped) for clipped in self.clipped()])  # pools leave out an odd row or column

    def maps(self, tap: str) -> torch.Tensor:
        return self.buffer.clone() if tap == "raw" else self.stage.norm(self.buffer, torch.empty_like(self.buffer))

    def clipped(self) -> Iterator[torch.Tensor]:
        """A few images at a time; each is lost with the next."""
        for images in groups(self.buffer, self.stage.channels):
            yield self.stage.clip(images, self.memory.like("read", images))


class DenseStep:
    """A dense layer: reads the buffer's first channels, writes those that follow."""

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        first, *rest = layer.convs
        self.norm: Clip | Affine
        if rest:
            self.norm = Clip(layer.norm, dtype)
            first = self.norm.folded_into(first)
        else:  # a threshold left to a padded convolution would be missing on its border
            self.norm = Affine(layer.norm, dtype)
        self.convs = [convolution(conv, dtype) for conv in (first, *rest)]
        self.begin = len(layer.norm.scale)
        self.end = self.begin + len(layer.convs[-1].weight)

    def __call__(self, buffer: torch.Tensor, memory: Memory) -> None:
        seen = buffer[:, : self.begin]
        x = self.norm(seen, memory.like("read", seen))
        for conv in self.convs:
            x = conv(x)
        buffer[:, self.begin : self.end] = x


class Affine:
    """``relu(x · scale + shift)`` for each of C channels."""

    def __init__(self, norm: Norm, dtype: torch.dtype) -> None:
        self.scale, self.shift = (values.to(dtype).view(1, -1, 1, 1) for values in (norm.scale, norm.shift))

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` to ``out``, of the same shape."""
        return torch.addcmul(self.shift, x, self.scale, out=out).relu_()
