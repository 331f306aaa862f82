"""Block sizes of the kernels: on a GPU the fastest of a few, timed once a process for each kind and size of call.

Candidates of a kernel differ in nothing that a result's bits depend on (see ``triton_kernels``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from triton.runtime.errors import OutOfResources

from densefeat.features.engines.triton.kernels import INTERPRETED

_TIMED_CALLS = 10
TRANSITION_TILE = 64  # of all candidates: sums over pixels are by the tile


@dataclass(frozen=True)
class Blocks:
    """A tile of ``m`` pixels by ``n`` outputs, ``k`` channels a step, by ``warps`` warps with loads ``stages`` steps ahead."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        """As the kernels take them."""
        return dict(BLOCK_M=self.m, BLOCK_N=self.n, BLOCK_K=self.k, num_warps=self.warps, num_stages=self.stages)


# of each kernel, for bfloat16 and for float32: (m, most of n, k, warps, stages), the most promising first, the smallest last
_TILES = {
    "pointwise": (
        [(128, 128, 64, 8, 3), (64, 128, 64, 4, 3), (128, 256, 64, 8, 3), (64, 256, 64, 8, 3), (64, 64, 64, 4, 2)],
        [(128, 64, 32, 8, 2), (128, 128, 32, 8, 2), (64, 64, 32, 4, 2)],
    ),
    "conv3x3": (  # three sums a tile
        [(128, 64, 64, 8, 3), (128, 32, 64, 4, 3), (128, 32, 64, 8, 3), (64, 64, 64, 4, 3), (64, 32, 64, 4, 2)],
        [(128, 32, 32, 8, 2), (64, 32, 32, 4, 2)],
    ),
    "conv3x3_stride2": (
        [(128, 128, 64, 8, 3), (64, 128, 64, 4, 3), (64, 64, 64, 4, 2)],
        [(128, 64, 32, 8, 2), (64, 64, 32, 4, 2)],
    ),
    "transition": (
        [(TRANSITION_TILE, *rest) for rest in ((128, 64, 8, 2), (256, 64, 8, 2), (64, 64, 4, 2))],
        [(TRANSITION_TILE, *rest) for rest in ((128, 32, 8, 2), (64, 32, 4, 2))],
    ),
    "stem_conv": ([(128, 128, 32, 8, 2), (128, 64, 32, 4, 2), (64, 64, 32, 4, 2)], [(128, 64, 32, 8, 2), (64, 64, 32, 4, 2)]),
}  # fmt: skip


def power_of_two(value: int) -> int:
    """The least that is not below ``value``, and at least 16, the shortest side of a matrix product."""
    return max(16, 1 << (value - 1).bit_length())


def _candidates(kernel: str, outputs: int, dtype: torch.dtype) -> list[Blocks]:
    tiles = _TILES[kernel][dtype == torch.float32]
    made = [Blocks(m, min(power_of_two(outputs), most), k, warps, stages) for m, most, k, warps, stages in tiles]
    return list(dict.fromkeys(made))


class Tuner:
    """Remembers what was fastest for each kernel, type, and size of call (rows and channels to a power of two)."""

    def __init__(self) -> None:
        self.chosen: dict[tuple[object, ...], Blocks] = {}

    def blocks(
        self, kernel: str, x: torch.Tensor, rows: int, channels: int, outputs: int, run: Callable[[Blocks], None]
    ) -> Blocks:
        """For a call on ``x`` that ``run`` makes, as often as asked: it overwrites its results, it does not add to them."""
        tried = _candidates(kernel, outputs, x.dtype)
        if INTERPRETED.value:
            return tried[0]
        key = (kernel, x.device, x.dtype, power_of_two(rows), power_of_two(channels), outputs)
        if key not in self.chosen:
            self.chosen[key] = min(tried, key=lambda blocks: _milliseconds(run, blocks))
        return self.chosen[key]


def _milliseconds(run: Callable[[Blocks], None], blocks: Blocks) -> float:
    """Of some calls; infinite where the GPU has too little of what these blocks take."""
    try:
        run(blocks)  # compiles
    except OutOfResources:
        return float("inf")
    graph = _captured(run, blocks)  # one by one, small calls would take as long as their launches
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _captured(run: Callable[[Blocks], None], blocks: Blocks) -> torch.cuda.CUDAGraph:
    """Calls, which must allocate nothing. torch.cuda.graph would collect garbage and empty caches before each."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(_TIMED_CALLS):
                run(blocks)
        finally:
            graph.capture_end()
    return graph


TUNER = Tuner()
