"""Progressive resizing: a run trains on small images at first, which takes less time, and on whole ones at its end."""

from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class SizeSchedule:
    """``starts``: the first step of each size of the training images, with the size in pixels; none: the images' own."""

    starts: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_shares(cls, sizes: dict[float, int], steps: int) -> "SizeSchedule":
        """``sizes``: by the share of a run of ``steps`` at which each begins."""
        return cls(tuple((round(share * steps), size) for share, size in sizes.items()))

    @property
    def several(self) -> bool:
        return len(self.starts) > 1

    def resize(self, x: torch.Tensor, step: int) -> torch.Tensor:
        """Resize images ``(N, C, S, S)`` to the size of a step, each pixel a mean of those that it covers."""
        size = ([size for start, size in self.starts if start <= step] or [x.shape[-1]])[-1]
        return x if size == x.shape[-1] else interpolate(x, (size, size), mode="bilinear", antialias=True)
