"""What every engine is made from, takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built for.

    Args:
        blocks: Numbers from 0, ascending; the engine runs no further than the last.
        tap: ``"norm"`` or ``"raw"``, as in :class:`densefeat.FeatureExtractor`.
        precision: ``"fp32"`` or ``"bf16"``: of weights and maps; sums are float32.
        device: Where images are and features stay.
    """

    blocks: tuple[int, ...]
    tap: str
    precision: str
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16


@dataclass(frozen=True)
class BlockOutput:
    """Of one block, as asked: ``mean (N, C)``, float32, over the map's pixels; ``maps (N, C, H, W)``, float32 or bfloat16."""

    mean: torch.Tensor | None
    maps: torch.Tensor | None


def joined_outputs(parts: Sequence[BlockOutput]) -> BlockOutput:
    """Of one block: what was given for some images each, as for all of them."""
    means = [part.mean for part in parts if part.mean is not None]
    maps = [part.maps for part in parts if part.maps is not None]
    return BlockOutput(joined(means) if means else None, joined(maps) if maps else None)


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """``torch.cat``, but no copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Engine(Protocol):
    """Made from a folded network and what is wanted of it: ``SomeEngine(network, wanted)``."""

    def __call__(self, x: torch.Tensor, mean: bool, maps: bool) -> list[BlockOutput]:
        """Prepared images ``(N, C, H, W)``, float32, of any strides and size, to one output a block wanted, in order.

        What is given back is the caller's: later calls do not write into it.
        """
