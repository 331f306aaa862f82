"""Maps of several blocks brought to one grid of positions, with a vector of features at each: what dense tasks are built on.

Position ``(i, j)`` of a grid with stride s stands for a square of s×s pixels of the network's input, which begins at row i·s
and column j·s and has its centre at ``((i + 0.5)·s, (j + 0.5)·s)``. Maps that are coarser than the grid are interpolated
between the centres of their positions (bilinearly); finer maps are averaged with the weights of that interpolation. A position
*sees* more than its square: the receptive field of its block, see :class:`densefeat.report.Field`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from densefeat.errors import UsageError

_MAX_DIMS = 2**16
_SEED = 0  # of the projection: one for all, so that grids of different jobs can be compared
_TINY = 1e-12  # the least length that a vector is divided by


@dataclass(frozen=True)
class GridRule:
    """How the maps of several blocks become one grid ``(N, D, h, w)``.

    Args:
        blocks: Block numbers from 1. The features of a position stand in the network's order of the blocks.
        stride: Pixels of the network's input between neighbouring positions; ``h = ceil(H / stride)``.
        average: Replace each value of a map by the mean of the 3×3 values around it (at the border: of those there are), before
            maps are brought to the grid, as PatchCore does (Roth et al., arXiv 2106.08265, section 3.1).
        normalize: Divide the vector of each block, at each position, by its L2 norm, so that no block outweighs the others.
        dims: Project the features of each position to so many numbers by a fixed matrix of random signs, which nearly keeps
            distances (Achlioptas, "Database-friendly random projections", 2003). None: keep all features.

    Raises UsageError for a value out of range or of another type.
    """

    blocks: tuple[int, ...] = (2, 3)
    stride: int = 8
    average: bool = False
    normalize: bool = False
    dims: int | None = None

    def __post_init__(self) -> None:
        numbers = self.blocks if isinstance(self.blocks, tuple) else ()
        if not numbers or not all(type(block) is int and block > 0 for block in numbers) or len(set(numbers)) < len(numbers):
            raise UsageError(f"blocks {self.blocks!r} of a grid: give block numbers from 1, each once, such as (2, 3)")
        if type(self.stride) is not int or not 0 < self.stride <= 1024:
            raise UsageError(f"stride {self.stride!r} of a grid: give 1 to 1024 pixels")
        if self.dims is not None and (type(self.dims) is not int or not 0 < self.dims <= _MAX_DIMS):
            raise UsageError(f"dims {self.dims!r} of a grid: give 1 to {_MAX_DIMS}, or None for all features")
        if type(self.average) is not bool or type(self.normalize) is not bool:
            raise UsageError(f"average {self.average!r} and normalize {self.normalize!r} of a grid: give True or False")

    @classmethod
    def from_json(cls, values: Any, owner: str) -> "GridRule":
        """Restore a rule that :meth:`to_json` wrote. Raises UsageError, which begins with ``owner``, for anything else."""
        try:
            return cls(**values | {"blocks": tuple(values["blocks"])})
        except (TypeError, KeyError, UsageError) as error:
            raise UsageError(f"{owner} records no grid of features that can be made ({error})") from error

    def to_json(self) -> dict[str, Any]:
        """Return the rule as JSON values, for :meth:`from_json`."""
        return asdict(self) | {"blocks": list(self.blocks)}

    def find_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid's height and width for images of ``height`` × ``width`` pixels."""
        return -(-height // self.stride), -(-width // self.stride)

    def combine(self, maps: Sequence[torch.Tensor], height: int, width: int) -> torch.Tensor:
        """Bring the maps of the blocks, each ``(N, C, H', W')``, to one float32 grid ``(N, D, h, w)``.

        ``height``, ``width``: of the images, in pixels.
        """
        shape = self.find_shape(height, width)
        grid = torch.cat([self._bring_to_grid(each.float(), shape) for each in maps], dim=1)
        if self.dims is None:
            return grid
        signs = torch.from_numpy(_make_signs(grid.shape[1], self.dims)).to(grid.device)
        return torch.einsum("dk,ndhw->nkhw", signs, grid) * self.dims**-0.5

    def _bring_to_grid(self, maps: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        if self.average:
            maps = functional.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
        if maps.shape[2:] != shape:
            sides = zip(maps.shape[2:], shape, strict=True)
            down, right = (torch.from_numpy(_make_weights(old, new)).to(maps.device) for old, new in sides)
            maps = down @ maps @ right.T
        return functional.normalize(maps, dim=1, eps=_TINY) if self.normalize else maps


@cache
def _make_weights(old: int, new: int) -> np.ndarray:
    """Return the weights, float32 ``(new, old)``, by which ``new`` positions of a line are made of ``old`` ones.

    They are those of torch's antialiased bilinear interpolation. As a matrix they are faster, and run in tools without it.
    """
    scale = old / new
    centers, places = (np.arange(new)[:, None] + 0.5) * scale, np.arange(old) + 0.5
    weights = (1 - np.abs(places - centers) / max(scale, 1)).clip(min=0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@cache
def _make_signs(rows: int, columns: int) -> np.ndarray:
    """Return the projection's signs, float32 ``(rows, columns)``: the same on every machine, as normal numbers are not."""
    bits = np.random.default_rng(_SEED).integers(0, 2, (rows, columns), dtype=np.int8)
    return (2 * bits - 1).astype(np.float32)
