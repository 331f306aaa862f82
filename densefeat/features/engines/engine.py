"""The interface of all engines: how one is built, what it is called with and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class EngineSpec:
    """The features that an engine is built to compute, and where.

    Args:
        blocks: Block indices from 0, ascending. The engine stops after the last of them.
        tap: ``"norm"`` or ``"raw"``, as in :class:`densefeat.FeatureExtractor`.
        precision: ``"fp32"`` or ``"bf16"``, of weights and maps, or ``"int8"``, of weights and what convolutions read. Sums are
            always float32.
        device: The device of the images and of the features.
    """

    blocks: tuple[int, ...]
    tap: str
    precision: str
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


@dataclass(frozen=True)
class BlockOutput:
    """The features of one block; those that were not requested are None.

    Args:
        mean: ``(N, C)``, float32: the mean of each map over its pixels.
        maps: ``(N, C, H, W)``, float32 or bfloat16.
    """

    mean: torch.Tensor | None
    maps: torch.Tensor | None


class Engine(Protocol):
    """A callable network, made by ``SomeEngine(network, spec)`` from a folded network and a spec."""

    def __call__(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        """Compute the features of normalised images.

        Args:
            x: ``(N, C, H, W)``, float32, of any size and any strides.
            mean: Whether to return the mean of each map.
            maps: Whether to return the maps.

        Returns:
            One output for each block of the spec, in the same order. Later calls do not write into these tensors.
        """


def concat_outputs(parts: Sequence[BlockOutput]) -> BlockOutput:
    """Concatenate the outputs of one block for several groups of images."""
    means = [part.mean for part in parts if part.mean is not None]
    maps = [part.maps for part in parts if part.maps is not None]
    return BlockOutput(concat_images(means) if means else None, concat_images(maps) if maps else None)


def concat_images(parts: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate along the first dimension, without a copy where there is a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
