"""A fitted head on positions as one safetensors file, with all that predicting masks needs but the network's weights."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from densefeat.base import TensorFile
from densefeat.errors import WeightsError
from densefeat.extraction import identify
from densefeat.features import FeatureExtractor, GridRule
from densefeat.nets import file_sha256
from densefeat.probing import Head, KnnHead, LinearHead, pack_head, parse_head, parse_names
from densefeat.search import rebuild_extractor
from densefeat.segmentation.grid_net import BlockGrid, GridNet, add_prior, find_shape, score_positions
from densefeat.segmentation.masks import MAX_CLASSES

FILE = "segmenter.safetensors"
SEGMENTER_FILE = TensorFile("densefeat_segmenter", 1, "segmenter", FILE, "densefeat segment probe")
_PRIOR = "log_prior"
_LARGEST = 6e4  # score, so that float16 can hold it
_MAX_FEATURES = 2**31


@dataclass(frozen=True)
class Segmenter:
    """A head on blocks' maps that scores the classes of every position of a grid.

    ``values``, ``names``: of the K classes, in masks and in words. ``grids``: the blocks, in the order of the head's features.
    ``log_prior``: float32 ``(K,)``, added to scores, see :mod:`densefeat.segmentation.fitting`. ``provenance``: of the
    features, as in a store's manifest; ``told``: how the head was fitted, as JSON.
    """

    values: tuple[int, ...]
    names: tuple[str, ...]
    grids: tuple[BlockGrid, ...]
    head: Head
    log_prior: np.ndarray
    provenance: dict[str, Any]
    told: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def network(self, weights: str | Path | None = None, device: str = "auto") -> "SegmenterNet":
        """Load the network and put this segmenter on it; arguments and errors as of :meth:`densefeat.Probe.extractor`."""
        return SegmenterNet(self, weights, device)


class SegmenterNet(nn.Module):
    """A network that turns images ``(N, C, H, W)`` into scores of positions ``(N, K, h, w)``, float32 on the CPU."""

    def __init__(self, segmenter: Segmenter, weights: str | Path | None, device: str) -> None:
        super().__init__()
        subject = SEGMENTER_FILE.describe(segmenter.path)
        taps = [grid.tap for grid in segmenter.grids]
        self.extractor: FeatureExtractor = rebuild_extractor(
            segmenter.provenance, taps, subject, weights, device, "make it again with densefeat segment probe"
        )
        shapes = self.extractor.feature_shapes()
        for grid in segmenter.grids:
            if shapes[grid.tap][0] != grid.channels:
                raise WeightsError(f"{subject}: {grid.channels} channels of {grid.tap!r}, which has {shapes[grid.tap][0]}")
        self.maps, self.segmenter = GridNet(self.extractor, segmenter.grids), segmenter
        self.shape = find_shape(segmenter.grids, self.extractor.preprocessing.size)
        identify(self, bytes(32) if segmenter.path is None else bytes.fromhex(file_sha256(segmenter.path)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = {name: values.cpu().numpy() for name, values in self.maps(x).items()}
        head, columns = self.segmenter.head, [grid.column for grid in self.segmenter.grids]
        raw = (score_positions(head, [maps[name][i] for name in columns], self.shape) for i in range(len(x)))
        scores = [add_prior(head, each, self.segmenter.log_prior) for each in raw]
        return torch.from_numpy(np.clip(np.stack(scores), -_LARGEST, _LARGEST))


def save_segmenter(path: Path, segmenter: Segmenter) -> None:
    """Write a segmenter atomically. Raises OutputError if it cannot be written."""
    tensors, facts = pack_head(segmenter.head)
    facts |= {name: getattr(segmenter, name) for name in ("values", "names", "told", "provenance")}
    facts |= {"grids": [asdict(grid) for grid in segmenter.grids]}
    SEGMENTER_FILE.save(path, facts, tensors | {_PRIOR: segmenter.log_prior})


def load_segmenter(path: str | Path) -> Segmenter:
    """Load a segmenter from its file, or from the folder that ``densefeat segment probe --out`` wrote.

    Raises WeightsError for a file that is missing, damaged, of a newer version, or no segmenter.
    """
    return SEGMENTER_FILE.load(path, _parse_segmenter)


def _parse_segmenter(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Segmenter:
    """Raise ValueError, TypeError or KeyError if anything is not as :func:`save_segmenter` writes it."""
    names, values, log_prior = parse_names(metadata["names"]), tuple(metadata["values"]), tensors[_PRIOR]
    if not 2 <= len(names) <= MAX_CLASSES or len(values) != len(names) or len(set(values)) < len(values):
        raise ValueError(f"{len(values)} values of {len(names)} classes")
    if not all(type(value) is int and 0 <= value < 2**16 for value in values):
        raise ValueError(f"values {values!r}")
    if log_prior.shape != (len(names),) or log_prior.dtype != np.float32 or not np.isfinite(log_prior).all():
        raise ValueError(f"log prior {log_prior.dtype} {log_prior.shape}")
    grids = tuple(_parse_grid(each) for each in metadata["grids"])
    head = parse_head(metadata, tensors, "single", names, 1)
    features = (
        head.weight.shape[1] if isinstance(head, LinearHead) else head.features.shape[1] if isinstance(head, KnnHead) else 0
    )
    if not grids or len({grid.tap for grid in grids}) < len(grids) or sum(grid.channels for grid in grids) != features:
        raise ValueError(f"{features} features of {len(grids)} blocks")
    for name in ("provenance", "told"):
        if not isinstance(metadata[name], dict):
            raise TypeError(f"{name} is not an object")
    return Segmenter(values, names, grids, head, log_prior, metadata["provenance"], metadata["told"], path)


def _parse_grid(record: dict[str, Any]) -> BlockGrid:
    grid = BlockGrid(**record)
    GridRule((1,), grid.stride)  # which checks it
    if not all(isinstance(name, str) for name in (grid.column, grid.tap)) or type(grid.channels) is not int:
        raise TypeError(f"block {record!r}")
    if not 0 < grid.channels < _MAX_FEATURES:
        raise ValueError(f"{grid.channels} channels")
    return grid
