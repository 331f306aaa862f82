"""The engine for CPUs, in plain torch: a block is one buffer that its layers write into, a few images at a time.

What a DenseNet costs in practice is memory traffic: every layer concatenates, normalises and rectifies all that came before
it. Here nothing is concatenated, for layers write their channels where the next ones read them; norm and ReLU are one pass
(:class:`Clip`) or part of a convolution; and only so many images go through a block together as leave its maps in the caches.
"""

import threading
from functools import partial

import torch
import torch.nn.functional as F

from densefeat.features.engines.cpu.convolution import convolution
from densefeat.features.engines.cpu.deluge_stage import DelugeStage
from densefeat.features.engines.cpu.dense_stage import DenseStage
from densefeat.features.engines.cpu.lanes import Lanes
from densefeat.features.engines.cpu.memory import Memory, groups
from densefeat.features.engines.engine import BlockOutput, EngineSpec, joined, joined_outputs
from densefeat.features.engines.finite import broken_blocks, carry_nan
from densefeat.features.engines.folded import Deluge, Dense, Network, Stem

_CHUNK_BYTES = 48 * 2**20  # of all blocks' maps: the images that go through the network together


class BufferEngine:
    """An :class:`Engine` for the CPU. Calls from several threads take turns, since they share the buffers."""

    def __init__(self, network: Network, wanted: EngineSpec) -> None:
        self.wanted = wanted
        self.stem = StemStage(network.stem, wanted.dtype)
        blocks: tuple[Dense | Deluge, ...] = network.blocks[: wanted.blocks[-1] + 1]
        self.stages = [
            DelugeStage(block, i, wanted.dtype) if isinstance(block, Deluge) else DenseStage(block, i, wanted.dtype)
            for i, block in enumerate(blocks)
        ]
        self.broken = broken_blocks(network, wanted)
        self.lanes = Lanes()
        self.memories = [Memory(wanted.dtype) for _ in range(self.lanes.most)]
        self.turn = threading.Lock()

    def __call__(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        with self.turn:
            parts = [part for parts in self.lanes.map(partial(self.run_chunks, mean, maps), x) for part in parts]
        outputs = [joined_outputs(of_block) for of_block in zip(*parts, strict=True)]
        carry_nan(x, outputs, self.broken)
        return outputs

    @torch.no_grad()
    def run_chunks(self, mean: bool, maps: bool, lane: int, x: torch.Tensor) -> list[list[BlockOutput]]:
        chunks = x.chunk(-(-len(x) // self.images_at_once(*x.shape[2:])))
        outputs = [self.run(images, self.memories[lane], mean, maps) for images in chunks]
        self.memories[lane].release(2 * _CHUNK_BYTES)
        return outputs

    def images_at_once(self, height: int, width: int) -> int:
        pixels = height * width // self.stem.reduction**2
        elements = sum(stage.channels * pixels // 4**i for i, stage in enumerate(self.stages))
        return max(1, _CHUNK_BYTES // max(1, elements * self.wanted.dtype.itemsize))

    def run(self, x: torch.Tensor, memory: Memory, mean: bool, maps: bool) -> list[BlockOutput]:
        """One pass, stage by stage."""
        tap = self.wanted.tap
        x = self.stem.run(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            filled = stage.run(x, memory)
            if stage is not self.stages[-1]:
                x = filled.leave()
            if i in self.wanted.blocks:
                outputs.append(BlockOutput(filled.mean(tap) if mean else None, filled.maps(tap) if maps else None))
        return outputs


class StemStage:
    """The stem: a convolution, and for ImageNet a max pool."""

    def __init__(self, stem: Stem, dtype: torch.dtype) -> None:
        self.conv = convolution(stem.conv, dtype)
        self.pool, self.dtype = stem.pool, dtype
        self.reduction = stem.conv.stride * (2 if stem.pool else 1)
        self.channels = len(stem.conv.weight) // stem.conv.stride**2  # of its maps, per pixel of an image

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Prepared images to the first block's input."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return joined([self.one_group(images) for images in groups(x, self.channels)])

    def one_group(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images)
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.pool else x
