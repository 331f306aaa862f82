"""Grids of features: equal to a computation of their own on every backend, at the places that the words promise."""

import numpy as np
import pytest
import timm
import torch
from scipy.ndimage import map_coordinates, uniform_filter
from torch import nn

from densefeat import FeatureExtractor, UsageError
from densefeat.features import GridRule, find_openvino_obstacle
from support.helpers import randomize_statistics
from support.tiny_net import TINY

BACKENDS = ["reference", "buffer", "openvino"]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(11, 3, 40, 48, generator=torch.Generator().manual_seed(2))


def compute_maps(model: nn.Module, x: torch.Tensor) -> list[np.ndarray]:
    """The maps that blocks 2 and 3 hand on, of which the second is half as large, by a plain hook."""
    found: list[np.ndarray] = []
    places = (model.features.transition2.norm, model.features.norm5)
    handles = [
        place.register_forward_hook(lambda *call: found.append(call[2].clamp(min=0).numpy().astype(np.float64)))
        for place in places
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def resample(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate between the centres of a map's positions, at the centres of a finer grid's."""
    rows = (np.arange(height) + 0.5) * maps.shape[2] / height - 0.5
    columns = (np.arange(width) + 0.5) * maps.shape[3] / width - 0.5
    places = np.meshgrid(rows, columns, indexing="ij")
    flat = [map_coordinates(each, places, order=1, mode="nearest") for each in maps.reshape(-1, *maps.shape[2:])]
    return np.array(flat).reshape(*maps.shape[:2], height, width)


def average(maps: np.ndarray) -> np.ndarray:
    """The mean of the 3×3 values around each, of those that there are."""
    total, number = (uniform_filter(x, (0, 0, 3, 3), mode="constant", axes=(0, 1, 2, 3)) for x in (maps, np.ones_like(maps)))
    return total / number


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("averaged", [False, True])
def test_a_grid_equals_a_computation_of_its_own(trained: nn.Module, images: torch.Tensor, backend: str, averaged: bool) -> None:
    if backend == "openvino" and find_openvino_obstacle() is not None:
        pytest.skip("no OpenVINO")
    maps = compute_maps(trained, images)
    expected = [resample(average(each) if averaged else each, 20, 24) for each in maps]
    grid = FeatureExtractor(trained, blocks=1, backend=backend).grid(images, (2, 3), 2, average=averaged)
    assert (grid.dtype, grid.shape[2:]) == (torch.float32, (20, 24))
    difference = np.abs(grid.numpy() - np.concatenate(expected, axis=1)).max()
    assert difference < 1e-5 * max(1, np.abs(maps[0]).max(), np.abs(maps[1]).max())


def test_each_block_has_the_same_weight_once_it_is_normalised(trained: nn.Module, images: torch.Tensor) -> None:
    extractor = FeatureExtractor(trained)
    plain, grid = (extractor.grid(images, (2, 3), 4, normalize=normalize).double() for normalize in (False, True))
    width = compute_maps(trained, images[:1])[0].shape[1]
    for block in (slice(0, width), slice(width, None)):
        lengths = plain[:, block].square().sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(grid[:, block] * lengths, plain[:, block], rtol=1e-5, atol=1e-6)


def test_a_projection_keeps_distances_and_is_the_same_for_all(trained: nn.Module, images: torch.Tensor) -> None:
    extractor = FeatureExtractor(trained)
    full, projected = (extractor.grid(images, (2, 3), 8, dims=dims) for dims in (None, 512))
    assert projected.shape == (11, 512, 5, 6)
    before, after = (torch.pdist(grid.permute(0, 2, 3, 1).flatten(0, 2).double()) for grid in (full, projected))
    ratio = (after / before)[before > before.median()]
    assert 0.8 < ratio.min() < ratio.max() < 1.2
    signs = np.random.default_rng(0).integers(0, 2, (full.shape[1], 512), dtype=np.int8) * 2.0 - 1
    position = full[3, :, 2, 4].double().numpy() @ signs / 512**0.5
    np.testing.assert_allclose(projected[3, :, 2, 4], position, rtol=1e-4, atol=1e-5)


def test_a_bright_square_is_found_at_its_position() -> None:
    """The maps of a network that passes pixels on are the pixels: each position shows its own square."""

    class Averages(nn.Module):
        feature_info = [dict(num_chs=3, reduction=2, module="fine"), dict(num_chs=3, reduction=8, module="coarse")]

        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.AvgPool2d(2), nn.AvgPool2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.coarse(self.fine(x))

    x = torch.zeros(1, 3, 64, 80)
    x[:, :, 24:32, 40:48] = 1  # the square of position (3, 5)
    grid = FeatureExtractor(Averages()).grid(x, (1, 2), 8)
    assert grid.shape == (1, 6, 8, 10)
    assert {divmod(int(channel.argmax()), 10) for channel in grid[0]} == {(3, 5)}
    assert grid[0, 3:].count_nonzero() == 3  # the block of the grid's own stride is left as it is


def test_sizes_that_the_stride_does_not_divide(trained: nn.Module) -> None:
    extractor = FeatureExtractor(trained)
    x = torch.randn(1, 3, 37, 41)
    assert extractor.grid(x, (1, 3), 8).shape[2:] == (5, 6) == GridRule((1, 3)).find_shape(37, 41)


def test_the_extractor_stays_as_it_was(trained: nn.Module, images: torch.Tensor) -> None:
    extractor = FeatureExtractor(trained, blocks="1,3", pool="max")
    before = extractor(images)
    extractor.grid(images, (2,))
    after = extractor(images)
    assert list(after) == ["block1", "block3"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_that_change_change_the_grid(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = randomize_statistics(timm.create_model(TINY)).eval()
    extractor = FeatureExtractor(model)
    before = extractor.grid(images, (2, 3))
    with torch.no_grad():
        model.features.conv0.weight.mul_(2)
    after = extractor.grid(images, (2, 3))
    torch.testing.assert_close(after, FeatureExtractor(model, backend="reference").grid(images, (2, 3)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"blocks": ()}, r"blocks \(\) of a grid: give block numbers from 1"),
        ({"blocks": (0, 1)}, r"blocks \(0, 1\)"),
        ({"blocks": (2, 2)}, "each once"),
        ({"blocks": (9,)}, "this network has 1 to 3"),
        ({"stride": 0}, "stride 0 of a grid: give 1 to 1024 pixels"),
        ({"stride": 2.5}, "stride 2.5"),
        ({"dims": 0}, "dims 0 of a grid: give 1 to 65536"),
        ({"average": 1}, "average 1 and normalize False"),
    ],
)
def test_wrong_rules(trained: nn.Module, options: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        FeatureExtractor(trained).grid(torch.zeros(1, 3, 32, 32), **options)


def test_a_rule_can_be_recorded() -> None:
    rule = GridRule((1, 3), 4, True, False, 64)
    assert GridRule.from_json(rule.to_json(), "detector 'x'") == rule
    for record in (None, {}, {"blocks": 2}, rule.to_json() | {"stride": "8"}, rule.to_json() | {"more": 1}):
        with pytest.raises(UsageError, match="detector 'x' records no grid"):
            GridRule.from_json(record, "detector 'x'")
