"""Augmentation of small images on the device that they lie on: shift, mirror and cutout in one gather."""

from dataclasses import dataclass

import torch

_PAD = 4  # pixels of zeros around an image before the crop (1608.06993, 4.1)
_CUT = 16  # pixels, side of the square that cutout blanks (1708.04552)


@dataclass(frozen=True)
class Draws:
    """What was drawn for each of n images, int64 ``(n,)``: shift down and right, whether mirrored, centre of the cut."""

    down: torch.Tensor
    right: torch.Tensor
    mirror: torch.Tensor
    cut_y: torch.Tensor
    cut_x: torch.Tensor

    def part(self, part: slice, device: torch.device) -> "Draws":
        return Draws(*(values[part].to(device, non_blocking=True) for values in vars(self).values()))


def draw(count: int, size: int, augment: str, seed: int, step: int) -> Draws:
    """For the ``count`` images of a whole batch, on the CPU: the same for any number of ranks."""
    generator = torch.Generator().manual_seed(seed + 1_000_003 * (step + 1))

    def integers(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    still, nowhere = torch.zeros(count, dtype=torch.int64), torch.full((count,), -_CUT)
    if augment == "none":
        return Draws(still, still, still, nowhere, nowhere)
    shift = integers(-_PAD, _PAD + 1), integers(-_PAD, _PAD + 1), integers(0, 2)
    cut = (integers(0, size), integers(0, size)) if augment == "cutout" else (nowhere, nowhere)
    return Draws(*shift, *cut)


def gathered(
    images: torch.Tensor, rows: torch.Tensor, draws: Draws, mean: torch.Tensor, std: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """``images`` uint8 ``(N, H, W, 3)`` at ``rows`` int64 ``(n,)``, augmented and normalised: ``(n, 3, H, W)``, channels last.

    ``mean``, ``std``: ``(3,)``, of pixels in [0, 1]. What a shift brings in and a cut leaves is 0 after normalisation, as where
    normalised images are padded (the papers' Torch code).
    """
    height, width = images.shape[1:3]
    y = torch.arange(height, device=images.device) + draws.down[:, None]
    x = torch.arange(width, device=images.device) + draws.right[:, None]
    x = torch.where(draws.mirror[:, None] == 1, width - 1 - x, x)
    inside = _within(y, 0, height)[:, :, None] & _within(x, 0, width)[:, None, :]
    # a cut lies in the image as it comes out, wherever its pixels came from
    cut_rows = _within(torch.arange(height, device=images.device) - draws.cut_y[:, None], -_CUT // 2, _CUT // 2)
    cut_columns = _within(torch.arange(width, device=images.device) - draws.cut_x[:, None], -_CUT // 2, _CUT // 2)
    inside &= ~(cut_rows[:, :, None] & cut_columns[:, None, :])
    y, x = y.clamp_(0, height - 1), x.clamp_(0, width - 1)
    pixels = images.view(-1, 3)[((rows[:, None] * height + y) * width)[:, :, None] + x[:, None, :]]
    scaled = (pixels.to(dtype) - 255 * mean) * (inside[..., None] / (255 * std))
    return scaled.permute(0, 3, 1, 2)


def _within(values: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return (values >= low) & (values < high)
