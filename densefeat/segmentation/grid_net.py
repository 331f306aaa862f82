"""The maps of every block, each at its own resolution but no finer than a grid, and heads on the positions of that grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from densefeat.features import FeatureExtractor, GridRule, parse_pools
from densefeat.overlay import enlarge_maps
from densefeat.probing import Head, LinearHead
from densefeat.store import block_name

_MAPS = parse_pools("none")
_PASS_BYTES = 2**28  # of maps computed at a time


@dataclass(frozen=True)
class BlockGrid:
    """A block's part of a grid. ``column``: its name in stores; ``tap``: its name in the network; ``stride``: in pixels.

    A block whose map is coarser than the grid keeps its own stride: a linear head can be applied before the map is enlarged to
    the grid, with the same result.
    """

    column: str
    tap: str
    channels: int
    stride: int

    @property
    def rule(self) -> GridRule:
        return GridRule((1,), self.stride)  # the number of a block means nothing to GridRule.combine


def plan_grids(extractor: FeatureExtractor, stride: int) -> list[BlockGrid]:
    """Choose the stride of each of the extractor's blocks. Raises UsageError where an output of the network is no map."""
    GridRule((1,), stride)  # which checks it
    size = extractor.preprocessing.size
    shapes = extractor.feature_shapes()
    grids = []
    for number, tap in enumerate(extractor.taps, 1):
        channels, height, _ = shapes[tap.name]
        grids.append(BlockGrid(block_name(number), tap.name, channels, max(stride, round(size / height))))
    return grids


class GridNet(nn.Module):
    """The blocks' maps ``(N, C, h, w)`` of images ``(N, 3, H, W)``, by column; see :class:`BlockGrid`."""

    def __init__(self, extractor: FeatureExtractor, grids: Sequence[BlockGrid]) -> None:
        super().__init__()
        self.extractor, self.grids = extractor, list(grids)
        self.model = extractor.model  # whose tensors identify this network in a store
        shapes = extractor.feature_shapes()
        self._images = max(1, _PASS_BYTES // (4 * sum(int(np.prod(shape)) for shape in shapes.values())))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        parts: dict[str, list[torch.Tensor]] = {grid.column: [] for grid in self.grids}
        for chunk in x.split(self._images):
            maps = self.extractor.forward(chunk, _MAPS)
            for grid in self.grids:
                parts[grid.column].append(grid.rule.combine([maps[grid.tap]], *x.shape[2:]))
        return {name: torch.cat(part) for name, part in parts.items()}


def score_positions(head: Head, maps: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Score the positions of a grid by the blocks' maps of one image, ``(C, h, w)`` each: float32 ``(K, *shape)``.

    A linear head scores each block's map at its own resolution, and the scores are enlarged: the result is the same, since
    interpolation is linear, too.
    """
    if isinstance(head, LinearHead):
        return _score_linear(head, maps, shape)
    grid = np.concatenate([enlarge_maps(each, *shape) for each in maps])
    return head.scores(grid.reshape(len(grid), -1).T).T.reshape(-1, *shape)


def add_prior(head: Head, scores: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
    """Add the logarithm of each class's weight, ``(K,)``, to the scores of :func:`score_positions`.

    For a linear head the result is logits. For others it is shares of votes, from 0 to 1: scores are interpolated later, where
    logarithms of shares near 0 would outweigh all others.
    """
    scores = scores + log_prior.astype(np.float32)[:, None, None]
    if isinstance(head, LinearHead):
        return scores
    shares = np.exp(scores - scores.max(0))
    return shares / shares.sum(0)


def _score_linear(head: LinearHead, maps: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    scores = np.zeros((len(head.bias), *shape), np.float32)
    first = 0
    for each in maps:
        weight = head.weight[:, first : first + len(each)]
        own = weight @ each.reshape(len(each), -1).astype(np.float32)
        scores += enlarge_maps(own.reshape(-1, *each.shape[1:]), *shape)
        first += len(each)
    return scores + head.bias[:, None, None]


def choose_classes(scores: np.ndarray, height: int, width: int) -> np.ndarray:
    """Choose the class of each pixel from the scores of a grid ``(K, h, w)``: uint8 ``(height, width)``.

    Scores are interpolated, a class at a time, so that memory does not grow with K. Of equal scores the first class wins.
    """
    best = enlarge_maps(scores[:1], height, width)[0]
    chosen = np.zeros((height, width), np.uint8)
    for code in range(1, len(scores)):
        values = enlarge_maps(scores[code : code + 1], height, width)[0]
        better = values > best
        chosen[better] = code
        best[better] = values[better]
    return chosen


def find_shape(grids: Sequence[BlockGrid], size: int) -> tuple[int, int]:
    """Return the shape of the finest of the blocks' grids, for an input of ``size`` pixels a side."""
    return min((grid.rule for grid in grids), key=lambda rule: rule.stride).find_shape(size, size)
