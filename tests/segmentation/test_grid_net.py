"""Scores of positions, and masks from them, against computations of their own."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

import densefeat
from densefeat.errors import UsageError
from densefeat.labels import Targets
from densefeat.probing import KnnHead, LinearHead
from densefeat.segmentation.grid_net import GridNet, add_prior, choose_classes, find_shape, plan_grids, score_positions
from support.tiny_net import TINY, tiny_state


def enlarge(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate maps ``(K, h, w)`` between the centres of their positions by scipy; beyond the outermost they are constant."""
    sides = [(np.arange(n) + 0.5) / n for n in maps.shape[1:]]
    points = [np.clip((np.arange(n) + 0.5) / n, side[0], side[-1]) for n, side in zip((height, width), sides, strict=True)]
    grid = np.stack(np.meshgrid(*points, indexing="ij"), -1)
    return np.stack([RegularGridInterpolator(sides, each)(grid) for each in maps.astype(np.float64)])


def make_maps() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=(5, 8, 8)).astype(np.float16), generator.normal(size=(3, 4, 4)).astype(np.float16)]


def test_a_linear_head_scores_coarse_maps_as_their_enlarged_features() -> None:
    generator, maps = np.random.default_rng(1), make_maps()
    head = LinearHead(generator.normal(size=(4, 8)).astype(np.float32), generator.normal(size=4).astype(np.float32))
    log_prior = np.array([0, 0.5, -1, 0], np.float32)
    scores = add_prior(head, score_positions(head, maps, (8, 8)), log_prior)
    features = np.concatenate([maps[0].astype(np.float64), enlarge(maps[1], 8, 8)])
    expected = np.einsum("kd,dhw->khw", head.weight.astype(np.float64), features) + (head.bias + log_prior)[:, None, None]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    chosen = choose_classes(scores, 37, 50)
    large = enlarge(expected, 37, 50)
    margin = np.diff(np.sort(large, axis=0)[-2:], axis=0)[0]
    assert (chosen == large.argmax(0))[margin > 1e-3].all()
    assert (margin > 1e-3).mean() > 0.99


def test_votes_are_shares_that_a_prior_weighs() -> None:
    features = np.eye(8, dtype=np.float32)[:4]
    head = KnnHead(features, Targets("single", ("a", "b", "c"), np.array([0, 0, 1, 1])), k=4)
    shares = add_prior(head, score_positions(head, make_maps(), (8, 8)), np.log([1, 3, 1]).astype(np.float32))
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    plain = head.scores(np.concatenate([make_maps()[0].astype(np.float32), enlarge(make_maps()[1], 8, 8)]).reshape(8, -1).T)
    votes = np.exp(plain) * [1, 3, 1]
    np.testing.assert_allclose(shares.reshape(3, -1).T, votes / votes.sum(1, keepdims=True), atol=1e-3)


def test_the_first_of_equal_classes_is_chosen() -> None:
    assert choose_classes(np.zeros((3, 2, 2), np.float32), 4, 5).tolist() == [[0] * 5] * 4


@pytest.fixture(scope="module")
def extractor() -> densefeat.FeatureExtractor:
    import timm

    network = timm.create_model(TINY)
    network.load_state_dict(tiny_state())
    made = densefeat.FeatureExtractor(network, device="cpu", pool="none", image_size=36)
    made.preprocessing = made.preprocessing.see_whole()
    return made


def test_blocks_keep_their_own_stride_where_it_is_coarser(extractor: densefeat.FeatureExtractor) -> None:
    grids = plan_grids(extractor, 2)
    assert [(grid.column, grid.stride) for grid in grids] == [("block1", 2), ("block2", 2), ("block3", 4)]
    assert find_shape(grids, 36) == (18, 18)
    x = torch.rand(3, 3, 36, 36)
    maps, plain = GridNet(extractor, grids)(x), extractor(x, pool="none")
    assert [tuple(each.shape[2:]) for each in maps.values()] == [(18, 18), (18, 18), (9, 9)]
    assert [each.shape[1] for each in maps.values()] == [grid.channels for grid in grids]
    for name in ("block2", "block3"):
        torch.testing.assert_close(maps[name], plain[name])
    torch.testing.assert_close(maps["block1"][0], extractor.grid(x[:1], (1,), 2)[0])


def test_images_go_through_a_few_at_a_time(extractor: densefeat.FeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    grids, x = plan_grids(extractor, 4), torch.rand(5, 3, 36, 36)
    whole = GridNet(extractor, grids)(x)
    net = GridNet(extractor, grids)
    net._images = 2
    for name, values in net(x).items():
        torch.testing.assert_close(values, whole[name])


@pytest.mark.parametrize("stride", [0, -1, 2000])
def test_strides_without_a_meaning(extractor: densefeat.FeatureExtractor, stride: int) -> None:
    with pytest.raises(UsageError, match=f"stride {stride}"):
        plan_grids(extractor, stride)
