"""The sizes of training images over a run."""

import numpy as np
import pytest
import torch
from PIL import Image

from densefeat.training.sizes import SizeSchedule


@pytest.mark.parametrize(("step", "size"), [(0, 16), (44, 16), (45, 24), (79, 24), (80, 32), (99, 32), (120, 32)])
def test_sizes_by_step(step: int, size: int) -> None:
    schedule = SizeSchedule.from_shares({0: 16, 0.45: 24, 0.8: 32}, 100)
    assert schedule.resize(torch.zeros(2, 3, 32, 32), step).shape == (2, 3, size, size)
    assert schedule.several


@pytest.mark.parametrize("sizes", [{}, {0.0: 32}])
def test_images_of_one_size_stay_as_they_are(sizes: dict[float, int]) -> None:
    schedule, x = SizeSchedule.from_shares(sizes, 100), torch.zeros(2, 3, 32, 32)
    assert schedule.resize(x, 50) is x
    assert not schedule.several


@pytest.mark.parametrize("size", [8, 16, 24, 27])
def test_resized_as_pillow_does(size: int) -> None:
    channels = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    expected = np.stack(
        [np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR)) for channel in channels]
    )
    resized = SizeSchedule(((0, size),)).resize(torch.from_numpy(channels)[None], 0)[0]
    assert np.allclose(resized.numpy(), expected, atol=1e-5)
