"""Features of what is not a number: oneDNN's ReLU and OpenVINO's make 0 of NaN, and a broken image would look like another."""

from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch

from densefeat.features.engines.engine import BlockOutput, EngineSpec
from densefeat.features.engines.folded import Deluge, Dense, Network


def broken_blocks(network: Network, wanted: EngineSpec) -> tuple[bool, ...]:
    """For each of the blocks wanted, whether its features come from weights that are NaN or infinite, its own or earlier."""
    finite = [_is_finite(network.stem), *map(_is_finite, network.blocks)]
    return tuple(
        not (all(finite[: number + 1]) and _is_finite(_read_at(network.blocks[number], wanted.tap))) for number in wanted.blocks
    )


def _read_at(block: Dense | Deluge, tap: str) -> Any:
    """What a block's own features come from: not what only the next block reads."""
    if isinstance(block, Dense):
        return (block.layers, block.norm) if tap == "norm" else block.layers
    return block if tap == "norm" else (block.opener, block.layers)


def _is_finite(part: Any) -> bool:
    """A part of a folded network: all of its numbers."""
    if isinstance(part, torch.Tensor):
        return bool(part.isfinite().all())
    parts = vars(part).values() if is_dataclass(part) else part if isinstance(part, tuple) else ()
    return all(map(_is_finite, parts))


def carry_nan(x: torch.Tensor, outputs: Sequence[BlockOutput], broken: Sequence[bool]) -> None:
    """Make NaN of the rows of images ``x (N, C, H, W)`` that are not finite, and of all rows of ``broken`` blocks."""
    bad_images = [i for i, image in enumerate(x.detach()) if not _is_finite_image(image)]
    for output, bad_weights in zip(outputs, broken, strict=True):
        for values in (output.mean, output.maps):
            if values is not None and (bad_weights or bad_images):
                values[slice(None) if bad_weights else bad_images] = torch.nan


def _is_finite_image(image: torch.Tensor) -> bool:
    """By numpy, in this thread: torch's own threads would go on spinning for a while, beside the engine's next batch."""
    values = image.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())
