"""Blocks by number, taps by name."""

import numpy as np
import pytest
import timm
from torch import nn

from densefeat import UsageError
from densefeat.features.taps import find_taps


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return timm.create_model("densefeat_densenet121", growth_rate=4, block_config=(2, 2, 2, 2))


@pytest.mark.parametrize(
    ("blocks", "names"),
    [
        ("all", ["block1", "block2", "block3", "block4"]),
        ("4,2", ["block2", "block4"]),
        (3, ["block3"]),
        ((1, 1), ["block1"]),
        (np.int64(2), ["block2"]),
        (np.arange(2, 4), ["block2", "block3"]),
    ],
)
def test_blocks(blocks, names: list[str], model: nn.Module) -> None:
    assert [tap.name for tap in find_taps(model, blocks, "norm")] == names


def test_modules_of_the_two_taps(model: nn.Module) -> None:
    norm = ["features.transition1.act", "features.transition2.act", "features.transition3.act", "features.act5"]
    assert [tap.module for tap in find_taps(model, "all", "norm")] == norm
    assert [tap.module for tap in find_taps(model, "all", "raw")] == [f"features.denseblock{i}" for i in (1, 2, 3, 4)]


def test_timm_models_keep_their_modules_names() -> None:
    resnet = timm.create_model("resnet18")
    assert [tap.name for tap in find_taps(resnet, "2,5", "norm")] == ["layer1", "layer4"]


@pytest.mark.parametrize("blocks", ["0", "5", "1,5", "first", "", (), -1, "1.5", None, 1.5, np.array(["all"])])
def test_blocks_that_do_not_exist(blocks, model: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"this network has 1 to 4; give 'all' or some of them, as in 2,4"):
        find_taps(model, blocks, "norm")


def test_other_mistakes(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="tap 'relu': choose 'norm'"):
        find_taps(model, "all", "relu")
    with pytest.raises(UsageError, match="Sequential has no feature_info"):
        find_taps(nn.Sequential(), "all", "norm")
    with pytest.raises(UsageError, match="pass the whole model, not a pruned one or one made with features_only"):
        find_taps(timm.create_model("densenet121", features_only=True), "all", "norm")
