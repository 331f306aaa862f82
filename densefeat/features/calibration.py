"""Networks in int8: what one was calibrated for, and how far its features are from those in float32."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.features.engines.engine import Engine
from densefeat.features.engines.quantized import QuantizedNetwork
from densefeat.features.taps import Tap
from densefeat.nets import state_sha256


@dataclass(frozen=True)
class Calibration:
    """A network in int8 with the taps and the ``state`` (SHA-256 of the weights) that it was calibrated for."""

    network: QuantizedNetwork
    taps: list[Tap]
    state: str

    def check(self, model: nn.Module, taps: list[Tap]) -> QuantizedNetwork:
        """Return the network. Raises UsageError where it is one of other weights or taps."""
        if (self.taps, self.state) != (taps, state_sha256(model)):
            raise UsageError("precision 'int8' was calibrated for other weights or blocks: call calibrate(images) again")
        return self.network


def measure_cosines(one: Engine, other: Engine, batches: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return for each block the cosines of the means that two engines compute of each image, ``(N,)``."""
    parts: list[list[torch.Tensor]] = []
    for x in batches:
        pairs = zip(one(x, mean=True, maps=False), other(x, mean=True, maps=False), strict=True)
        parts.append([torch.cosine_similarity(_get_mean(a.mean), _get_mean(b.mean)) for a, b in pairs])
    return [torch.cat(cosines) for cosines in zip(*parts, strict=True)]


def _get_mean(mean: torch.Tensor | None) -> torch.Tensor:
    assert mean is not None  # the engine was called for it
    return mean
