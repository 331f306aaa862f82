"""NaN and infinite values must reach the features.

oneDNN's ReLU and OpenVINO's turn NaN into 0, so that a broken image or a broken network would look like any other.
"""

from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch

from densefeat.features.engines.engine import BlockOutput, EngineSpec
from densefeat.features.engines.folded import FoldedDelugeBlock, FoldedDenseBlock, FoldedNetwork


def find_broken_blocks(network: FoldedNetwork, spec: EngineSpec) -> tuple[bool, ...]:
    """Check for each block of the spec whether a weight that its features depend on is NaN or infinite."""
    finite = [_is_finite(part) for part in (network.stem, *network.blocks)]
    return tuple(
        not (all(finite[: i + 1]) and _is_finite(_select_weights(network.blocks[i], spec.tap)))  # the stem and earlier blocks
        for i in spec.blocks
    )


def _select_weights(block: FoldedDenseBlock | FoldedDelugeBlock, tap: str) -> Any:
    """Return the parts of a block that its own features depend on, without those that only the next block reads."""
    if isinstance(block, FoldedDenseBlock):
        return (block.layers, block.norm) if tap == "norm" else block.layers
    return block if tap == "norm" else (block.opener, block.layers)


def _is_finite(part: Any) -> bool:
    """Check all numbers of a part of a folded network."""
    if isinstance(part, torch.Tensor):
        return bool(part.isfinite().all())
    children = vars(part).values() if is_dataclass(part) else part if isinstance(part, tuple) else ()
    return all(map(_is_finite, children))


def propagate_nan(x: torch.Tensor, outputs: Sequence[BlockOutput], broken: Sequence[bool]) -> None:
    """Fill with NaN the rows of images in ``x (N, C, H, W)`` that are not finite, and all rows of ``broken`` blocks."""
    bad_images = [i for i, image in enumerate(x.detach()) if not _is_finite_image(image)]
    for output, bad_weights in zip(outputs, broken, strict=True):
        for values in (output.mean, output.maps):
            if values is not None and (bad_weights or bad_images):
                values[slice(None) if bad_weights else bad_images] = torch.nan


def _is_finite_image(image: torch.Tensor) -> bool:
    """Check with numpy, in this thread: torch's own threads would keep spinning for a while, beside the next batch."""
    values = image.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())
