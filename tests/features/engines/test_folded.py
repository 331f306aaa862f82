"""Folding: the folded networks give the same numbers, and networks with unknown parts are refused."""

from collections.abc import Callable
from dataclasses import asdict

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn
from torch.utils._pytree import tree_leaves

from densefeat.features.engines.foldable import NotFoldable, check_foldable
from densefeat.features.engines.folded import (
    FoldedCompositeLayer,
    FoldedDenseBlock,
    _fold_conv,
    _fold_norm,
    _fold_sum,
    fold_network,
)
from support.engines import deluge, dense, make_images
from support.helpers import randomize_statistics


def test_dense_network() -> None:
    network = fold_network(dense())
    assert network.stem.pool
    assert network.stem.conv.relu
    assert [len(block.layers[0].norm.scale) for block in network.blocks] == [24, 30, 27]
    assert [len(block.layers) for block in network.blocks] == [3, 2, 3]
    assert [block.transition is None for block in network.blocks] == [False, False, True]
    first, second = network.blocks[0].layers[0].convs
    assert first.weight.shape == (48, 24, 1, 1)
    assert (first.relu, first.bias.shape, first.padding) == (True, (48,), 0)
    assert (second.relu, second.bias, second.padding) == (False, None, 1)
    assert all(isinstance(block, FoldedDenseBlock) for block in network.blocks)


def test_deluge_network() -> None:
    network = fold_network(deluge(stem_type="cifar"))
    assert not network.stem.pool
    first, second = network.blocks
    assert isinstance(first.opener, FoldedCompositeLayer)
    assert (len(first.layers), len(second.layers)) == (3, 3)
    assert second.opener.stride == 2
    assert [layer.aggregate.weights.shape for layer in second.layers] == [(1, 24), (2, 24), (3, 24)]
    assert (first.relu, second.relu) == (False, True)


def test_norm_and_convolution() -> None:
    torch.manual_seed(0)
    layer = randomize_statistics(nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5)).double())
    folded = _fold_conv(layer[0], _fold_norm(layer[1]))
    x = make_images(2, 9, 8).double()
    y = F.conv2d(x, folded.weight, folded.bias, folded.stride, folded.padding)
    torch.testing.assert_close(y, layer.eval()(x))


def test_sum_of_all_norms() -> None:
    aggregate = deluge().double().features.block1.layers[2].aggregate
    folded = _fold_sum(aggregate)
    outputs = torch.randn(3, 2, 16, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    y = (folded.weights[:, None, :, None, None] * outputs).sum(0) + folded.bias[:, None, None]
    torch.testing.assert_close(y, aggregate(list(outputs)))


@pytest.mark.parametrize("make", [dense, deluge])
def test_synchronised_norms_fold_alike(make: Callable[[], nn.Module]) -> None:
    folded = [fold_network(model) for model in (make(), nn.SyncBatchNorm.convert_sync_batchnorm(make()))]
    plain, converted = ([part for part in tree_leaves(asdict(network)) if isinstance(part, torch.Tensor)] for network in folded)
    assert len(plain) > 20
    torch.testing.assert_close(converted, plain, rtol=0, atol=0)


def test_numbers_are_copies_in_float64() -> None:
    model = dense()
    network = fold_network(model)
    before = network.stem.conv.weight.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert before.dtype == torch.float64
    assert not before.requires_grad
    assert torch.equal(network.stem.conv.weight, before)


def add_hook(model: nn.Module) -> nn.Module:
    model.features.denseblock1.denselayer1.norm1.register_forward_hook(lambda *_: None)
    return model


def use_group_norm(model: nn.Module) -> nn.Module:
    model.features.norm5 = nn.GroupNorm(1, model.num_features)
    return model


def use_batch_statistics(model: nn.Module) -> nn.Module:
    model.features.norm5 = nn.BatchNorm2d(model.num_features, track_running_stats=False)
    return model


def add_bias(model: nn.Module) -> nn.Module:
    model.features.conv0 = nn.Conv2d(3, 24, 7, stride=2, padding=3)
    return model


def replace_part(model: nn.Module, name: str, part: nn.Module) -> nn.Module:
    model.set_submodule(f"features.{name}", part)
    return model


def change_attributes(model: nn.Module, name: str, **values: object) -> nn.Module:
    vars(model.get_submodule(f"features.{name}")).update(values)
    return model


@pytest.mark.parametrize(
    "model",
    [
        replace_part(dense(), "pool0", nn.Identity()),
        replace_part(dense(), "pool0", nn.AvgPool2d(3, 2, 1)),
        replace_part(dense(), "norm0", nn.Identity()),
        replace_part(dense(), "norm5", BatchNormAct2d(63)),
        replace_part(dense(), "act5", nn.SiLU()),
        replace_part(deluge(), "block1.layers.0.bottleneck.act3", nn.Identity()),
        replace_part(dense(), "transition1.pool", nn.MaxPool2d(2, 2)),
        replace_part(dense(), "transition1.conv", nn.Conv2d(60, 30, 3, padding=1, bias=False)),
        replace_part(dense(), "denseblock1.denselayer1.conv2", nn.Conv2d(48, 12, 5, padding=2, bias=False)),
        replace_part(dense(), "denseblock1.denselayer2", nn.Identity()),
        replace_part(deluge(), "pool0", nn.Identity()),
        replace_part(deluge(), "block1.layers.1.aggregate.norm", nn.Identity()),
        replace_part(deluge(), "block2.opener", nn.Conv2d(16, 24, 5, stride=2, padding=2, bias=False)),
        change_attributes(dense(), "pool0", ceil_mode=True),
        change_attributes(dense(), "transition2.pool", ceil_mode=True),
        change_attributes(dense(), "conv0", stride=(2, 1)),
        change_attributes(dense(), "denseblock2.denselayer1", forward=lambda features, statistics=None: features[0][:, :12]),
    ],
)
def test_replaced_parts_are_refused(model: nn.Module) -> None:
    with pytest.raises(NotFoldable, match="original part"):
        fold_network(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (timm.create_model("resnet18"), "ResNet is neither densefeat's DenseNet nor its DelugeNet"),
        (timm.create_model("densenet121"), "DenseNet is neither densefeat's DenseNet nor its DelugeNet"),
        (add_hook(dense()), "hooks are registered"),
        (use_group_norm(dense()), r"features.norm5 \(GroupNorm\) is not the original part"),
        (use_batch_statistics(dense()), r"features.norm5 \(BatchNorm2d\)"),
        (add_bias(dense()), r"features.conv0 \(Conv2d\)"),
        (dense().bfloat16(), "its parameters are torch.bfloat16: engines take only torch.float32"),
        (deluge().double(), "torch.float64"),
    ],
    ids=["another-network", "timm's", "hook", "group-norm", "batch-statistics", "bias", "bfloat16", "float64"],
)
@pytest.mark.parametrize("function", [fold_network, check_foldable])
def test_networks_that_cannot_be_folded(model: nn.Module, message: str, function: Callable) -> None:
    with pytest.raises(NotFoldable, match=message):
        function(model)
