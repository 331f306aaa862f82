"""Tile sizes of the kernels: on a GPU the fastest of a few, timed once a process for each kind and size of call.

The candidates of a kernel differ only in what does not change a bit of a result (see ``kernels.py``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from triton.runtime.errors import OutOfResources

from densefeat.features.engines.triton.kernels import INTERPRETED

_TIMED_CALLS = 10
TRANSITION_TILE = 64  # pixels of all candidates, since their sums over pixels are one a tile


@dataclass(frozen=True)
class Tile:
    """A tile of ``m`` pixels by ``n`` outputs, ``k`` channels a step, for ``warps`` warps that load ``stages`` steps ahead."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        """The kernels' arguments."""
        return dict(BLOCK_M=self.m, BLOCK_N=self.n, BLOCK_K=self.k, num_warps=self.warps, num_stages=self.stages)


# For each kernel, in bfloat16 and in float32: (m, largest n, k, warps, stages), the most promising first, the smallest last.
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


def round_up_to_power(value: int) -> int:
    """Round up to a power of two, to at least 16: the shortest side of a matrix product."""
    return max(16, 1 << (value - 1).bit_length())


def _candidate_tiles(kernel: str, outputs: int, dtype: torch.dtype) -> list[Tile]:
    rows = _TILES[kernel][dtype == torch.float32]
    tiles = [Tile(m, min(round_up_to_power(outputs), largest_n), k, warps, stages) for m, largest_n, k, warps, stages in rows]
    return list(dict.fromkeys(tiles))


class Tuner:
    """A record of the fastest tile for each kernel, type and size of call (rows and channels rounded up to powers of two)."""

    def __init__(self) -> None:
        self.fastest: dict[tuple[object, ...], Tile] = {}

    def choose_tile(
        self, kernel: str, x: torch.Tensor, rows: int, channels: int, outputs: int, run: Callable[[Tile], None]
    ) -> Tile:
        """Choose the tile for a call on ``x``. ``run`` makes that call, repeatedly: it must overwrite its results, not add."""
        tiles = _candidate_tiles(kernel, outputs, x.dtype)
        if INTERPRETED.value:
            return tiles[0]
        key = (kernel, x.device, x.dtype, round_up_to_power(rows), round_up_to_power(channels), outputs)
        if key not in self.fastest:
            self.fastest[key] = min(tiles, key=lambda tile: _time_calls(run, tile))
        return self.fastest[key]


def _time_calls(run: Callable[[Tile], None], tile: Tile) -> float:
    """Time some calls, in ms; infinite if the GPU lacks the resources that this tile takes."""
    try:
        run(tile)  # compiles
    except OutOfResources:
        return float("inf")
    graph = _capture_calls(run, tile)  # launched one by one, small calls would take as long as their launches
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _capture_calls(run: Callable[[Tile], None], tile: Tile) -> torch.cuda.CUDAGraph:
    """Capture calls that allocate nothing. ``torch.cuda.graph`` would collect garbage and empty caches before each capture."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(_TIMED_CALLS):
                run(tile)
        finally:
            graph.capture_end()
    return graph


TUNER = Tuner()
