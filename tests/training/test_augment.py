"""Shift, mirror and cutout in one gather, against doing it image by image."""

import pytest
import torch
import torch.nn.functional as F

from densefeat.training.device_data import _CUT, _PAD, Draws, draw, gather_augmented

MEAN, STD = torch.tensor([0.49, 0.48, 0.44], dtype=torch.float64), torch.tensor([0.24, 0.25, 0.26], dtype=torch.float64)
CPU = torch.device("cpu")


def random_images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def normalised(image: torch.Tensor) -> torch.Tensor:
    """uint8 ``(H, W, 3)`` to float64 ``(3, H, W)``."""
    return (image.permute(2, 0, 1) - 255 * MEAN[:, None, None]) * (1 / (255 * STD))[:, None, None]


def one_by_one(image: torch.Tensor, down: int, right: int, mirror: int, cut_y: int, cut_x: int) -> torch.Tensor:
    """As the papers tell it: normalise, mirror, pad with zeros, crop; then blank a square around the cut's centre."""
    x = normalised(image)
    x = x.flip(2) if mirror else x
    size = x.shape[1]
    x = F.pad(x, [_PAD] * 4)[:, _PAD + down :, _PAD + right :][:, :size, :size].clone()
    if cut_y >= 0:
        x[:, max(cut_y - _CUT // 2, 0) : cut_y + _CUT // 2, max(cut_x - _CUT // 2, 0) : cut_x + _CUT // 2] = 0
    return x


@pytest.mark.parametrize("augment", ["none", "shift-mirror", "cutout"])
@pytest.mark.parametrize("size", [8, 32])
def test_equals_one_image_after_the_other(augment: str, size: int) -> None:
    images, rows = random_images(50, size), torch.randperm(50, generator=torch.Generator().manual_seed(1))[:40]
    draws = draw(40, size, augment, seed=3, step=5)
    found = gather_augmented(images, rows, draws, MEAN, STD, torch.float64)
    assert found.shape == (40, 3, size, size)
    assert found.dtype == torch.float64
    assert found.is_contiguous(memory_format=torch.channels_last)
    drawn = torch.stack(list(vars(draws).values()), 1).tolist()
    wanted = torch.stack([one_by_one(images[row], *values) for row, values in zip(rows.tolist(), drawn, strict=True)])
    assert torch.equal(found, wanted)
    if augment != "none":
        assert len(set(map(tuple, drawn))) > 30


@pytest.mark.parametrize("down", [-_PAD, 0, _PAD])
@pytest.mark.parametrize("right", [-_PAD, 1, _PAD])
@pytest.mark.parametrize("mirror", [0, 1])
@pytest.mark.parametrize("cut", [(-_CUT, -_CUT), (0, 31), (31, 0), (16, 15)])
def test_every_corner(down: int, right: int, mirror: int, cut: tuple[int, int]) -> None:
    image = random_images(1)
    draws = Draws(*(torch.tensor([value]) for value in (down, right, mirror, *cut)))
    found = gather_augmented(image, torch.zeros(1, dtype=torch.int64), draws, MEAN, STD, torch.float64)
    assert torch.equal(found[0], one_by_one(image[0], down, right, mirror, *cut))


def test_none_is_plain_normalisation() -> None:
    images = random_images(6)
    still = draw(6, 32, "none", 0, 0)
    found = gather_augmented(images, torch.arange(6), still, MEAN.float(), STD.float(), torch.float32)
    assert found.dtype == torch.float32
    wanted = (images.permute(0, 3, 1, 2) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6)


def test_draws_lie_in_their_ranges_and_reach_the_ends() -> None:
    draws = draw(5000, 32, "cutout", seed=0, step=0)
    for values, low, high in ((draws.down, -_PAD, _PAD), (draws.right, -_PAD, _PAD), (draws.mirror, 0, 1), (draws.cut_y, 0, 31), (draws.cut_x, 0, 31)):  # fmt: skip
        assert values.dtype == torch.int64
        counts = torch.bincount(values - low)
        assert len(counts) == high - low + 1  # no value above
        assert counts.min() > 0.6 * 5000 / len(counts)  # all, about equally often


def test_draws_by_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> list[list[int]]:
        return [values.tolist() for values in vars(draw(64, 32, "cutout", seed, step)).values()]

    assert drawn(1, 2) == drawn(1, 2)
    different = [drawn(seed, step) for seed in range(3) for step in range(3)]
    assert all(one != other for i, one in enumerate(different) for other in different[:i])


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(64, 32, "cutout", 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_are_slices_of_the_whole() -> None:
    """However a batch is shared out, each image gets the same draws."""
    images, rows = random_images(24), torch.arange(24)
    draws = draw(24, 32, "cutout", seed=0, step=9)
    whole = gather_augmented(images, rows, draws, MEAN, STD, torch.float64)
    parts = [slice(0, 6), slice(6, 7), slice(7, 24)]
    found = [gather_augmented(images, rows[part], draws.part(part, CPU), MEAN, STD, torch.float64) for part in parts]
    assert torch.equal(torch.cat(found), whole)
