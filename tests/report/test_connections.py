"""Which weights read which source."""

import pytest
import timm
import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.report.connections import find_readers
from support.small_nets import deluge, dense


def test_readers_of_a_densenet() -> None:
    readers = find_readers(dense())
    found = [
        (reader.block, reader.place, reader.name, [tuple(weight.shape) for weight in reader.weights]) for reader in readers
    ]
    assert found == [
        (1, 0, "1", [(16, 8, 1, 1)]),
        (1, 1, "2", [(16, 8, 1, 1), (16, 4, 1, 1)]),
        (1, 2, "transition", [(8, 8, 1, 1), (8, 4, 1, 1), (8, 4, 1, 1)]),
        (2, 0, "1", [(16, 8, 1, 1)]),
        (2, 1, "2", [(16, 8, 1, 1), (16, 4, 1, 1)]),
        (2, 2, "3", [(16, 8, 1, 1), (16, 4, 1, 1), (16, 4, 1, 1)]),
        (2, 3, "classifier", [(5, 8), (5, 4), (5, 4), (5, 4)]),
    ]
    assert [reader.name for reader in readers if reader.leaves] == ["transition", "classifier"]


def test_readers_of_a_plain_densenet_read_by_their_only_convolution() -> None:
    readers = find_readers(dense(bottleneck=False, compression=1.0))
    assert [tuple(weight.shape) for weight in readers[1].weights] == [(4, 16, 3, 3), (4, 4, 3, 3)]


def test_readers_of_a_delugenet() -> None:
    """The first layer of block 2 reads one output, without a weight; in block 1 that layer is the opener."""
    readers = find_readers(deluge())
    found = [(reader.block, reader.place, reader.name, len(reader.weights)) for reader in readers]
    assert found == [(1, 1, "2", 2), (1, 2, "transition", 3), (2, 1, "2", 2), (2, 2, "3", 3), (2, 3, "classifier", 4)]
    assert {tuple(weight.shape) for weight in readers[-1].weights} == {(12,)}


@pytest.mark.parametrize("model", [dense(), deluge(), timm.create_model("densenet121", num_classes=3)])
def test_weights_are_views_that_write_through(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.named_parameters()}
    weight = find_readers(model)[-1].weights[-1]
    weight.zero_()
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) == 1
    assert int((model.get_parameter(changed[0]) == 0).sum()) == weight.numel()


def test_timm_has_the_same_readers() -> None:
    def list_shapes(name: str) -> list:
        return [(reader.block, reader.name, [weight.shape for weight in reader.weights])
                for reader in find_readers(timm.create_model(name))]  # fmt: skip

    assert list_shapes("densenet121") == list_shapes("densefeat_densenet121")


def test_a_network_without_a_classifier_has_no_such_column() -> None:
    assert find_readers(dense(num_classes=0))[-1].name == "3"


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (timm.create_model("resnet18"), "ResNet: its connections are not known: take a DenseNet or DelugeNet"),
        (dense(global_pool="catavgmax"), "classifier of 40 features on 20 channels: these are pooled in several ways"),
    ],
)
def test_other_networks_are_refused(model: nn.Module, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        find_readers(model)
