"""Folding: the networks' numbers, and what is refused."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from densefeat.features.engines.foldable import NotFoldable, check_foldable
from densefeat.features.engines.folded import Composite, Dense, _conv, _norm, _total, fold
from support.engines import deluge, dense, images
from support.helpers import randomize_statistics


def test_dense_network() -> None:
    network = fold(dense())
    assert network.stem.pool
    assert network.stem.conv.relu
    assert [block.channels for block in network.blocks] == [24, 30, 27]
    assert [len(block.layers) for block in network.blocks] == [3, 2, 3]
    assert [block.transition is None for block in network.blocks] == [False, False, True]
    first, second = network.blocks[0].layers[0].convs
    assert first.weight.shape == (48, 24, 1, 1)
    assert (first.relu, first.bias.shape, first.padding) == (True, (48,), 0)
    assert (second.relu, second.bias, second.padding) == (False, None, 1)
    assert all(isinstance(block, Dense) for block in network.blocks)


def test_deluge_network() -> None:
    network = fold(deluge(stem_type="cifar"))
    assert not network.stem.pool
    first, second = network.blocks
    assert isinstance(first.opener, Composite)
    assert (len(first.layers), len(second.layers)) == (3, 3)
    assert second.opener.stride == 2
    assert [layer.aggregate.weights.shape for layer in second.layers] == [(1, 24), (2, 24), (3, 24)]
    assert (first.relu, second.relu) == (False, True)


def test_norm_and_convolution() -> None:
    torch.manual_seed(0)
    layer = randomize_statistics(nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5)).double())
    folded = _conv(layer[0], _norm(layer[1]))
    x = images(2, 9, 8).double()
    found = F.conv2d(x, folded.weight, folded.bias, folded.stride, folded.padding)
    torch.testing.assert_close(found, layer.eval()(x))


def test_total_of_all_norms() -> None:
    aggregate = deluge().double().features.block1.layers[2].aggregate
    folded = _total(aggregate)
    outputs = torch.randn(3, 2, 16, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    found = (folded.weights[:, None, :, None, None] * outputs).sum(0) + folded.bias[:, None, None]
    torch.testing.assert_close(found, aggregate(list(outputs)))


def test_numbers_are_copies_in_float64() -> None:
    model = dense()
    network = fold(model)
    before = network.stem.conv.weight.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert before.dtype == torch.float64
    assert not before.requires_grad
    assert torch.equal(network.stem.conv.weight, before)


def with_hook(model: nn.Module) -> nn.Module:
    model.features.denseblock1.denselayer1.norm1.register_forward_hook(lambda *_: None)
    return model


def with_group_norm(model: nn.Module) -> nn.Module:
    model.features.norm5 = nn.GroupNorm(1, model.num_features)
    return model


def with_batch_statistics(model: nn.Module) -> nn.Module:
    model.features.norm5 = nn.BatchNorm2d(model.num_features, track_running_stats=False)
    return model


def with_bias(model: nn.Module) -> nn.Module:
    model.features.conv0 = nn.Conv2d(3, 24, 7, stride=2, padding=3)
    return model


def replaced(model: nn.Module, name: str, part: nn.Module) -> nn.Module:
    model.set_submodule(f"features.{name}", part)
    return model


def changed(model: nn.Module, name: str, **values: object) -> nn.Module:
    vars(model.get_submodule(f"features.{name}")).update(values)
    return model


@pytest.mark.parametrize(
    "model",
    [
        replaced(dense(), "pool0", nn.Identity()),
        replaced(dense(), "pool0", nn.AvgPool2d(3, 2, 1)),
        replaced(dense(), "norm0", nn.Identity()),
        replaced(dense(), "norm5", nn.BatchNorm2d(63)),
        replaced(dense(), "transition1.pool", nn.MaxPool2d(2, 2)),
        replaced(dense(), "transition1.conv", nn.Conv2d(60, 30, 3, padding=1, bias=False)),
        replaced(dense(), "denseblock1.denselayer1.conv2", nn.Conv2d(48, 12, 5, padding=2, bias=False)),
        replaced(dense(), "denseblock1.denselayer2", nn.Identity()),
        replaced(deluge(), "pool0", nn.Identity()),
        replaced(deluge(), "block1.layers.1.aggregate.norm", nn.Identity()),
        replaced(deluge(), "block2.opener", nn.Conv2d(16, 24, 5, stride=2, padding=2, bias=False)),
        changed(dense(), "pool0", ceil_mode=True),
        changed(dense(), "transition2.pool", ceil_mode=True),
        changed(dense(), "conv0", stride=(2, 1)),
        changed(dense(), "denseblock2.denselayer1", forward=lambda features, statistics=None: features[0][:, :12]),
    ],
)
def test_parts_that_were_replaced(model: nn.Module) -> None:
    with pytest.raises(NotFoldable, match="own parts"):
        fold(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (timm.create_model("resnet18"), "ResNet is no DenseNet or DelugeNet of densefeat's own"),
        (timm.create_model("densenet121"), "DenseNet is no DenseNet or DelugeNet of densefeat's own"),
        (with_hook(dense()), "hooks are registered"),
        (with_group_norm(dense()), r"features.norm5 \(GroupNorm\) is none of the network's own parts"),
        (with_batch_statistics(dense()), r"features.norm5 \(BatchNorm2d\)"),
        (with_bias(dense()), r"features.conv0 \(Conv2d\)"),
        (dense().bfloat16(), "its parameters are torch.bfloat16, not torch.float32 alone"),
        (deluge().double(), "torch.float64"),
    ],
    ids=["another-network", "timm's", "hook", "group-norm", "batch-statistics", "bias", "bfloat16", "float64"],
)
@pytest.mark.parametrize("function", [fold, check_foldable])
def test_what_cannot_be_folded(model: nn.Module, message: str, function: Callable) -> None:
    with pytest.raises(NotFoldable, match=message):
        function(model)
