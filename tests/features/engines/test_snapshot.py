"""Snapshot: it notices every change of a model, however it is made, and only changes."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from densefeat.features.engines.snapshot import Snapshot
from support.engines import dense, make_images


def get_weight(model: nn.Module) -> torch.Tensor:
    return model.features.denseblock1.denselayer2.conv1.weight


def write_in_no_grad(model: nn.Module) -> None:
    with torch.no_grad():
        get_weight(model)[3, 2, 0, 0] = 7


def write_one_value_through_data(model: nn.Module) -> None:
    get_weight(model).data[3, 2, 0, 0] = 7


def negate_through_data(model: nn.Module) -> None:
    get_weight(model).data.neg_()


def replace_data(model: nn.Module) -> None:
    get_weight(model).data = get_weight(model).data.clone()


def replace_parameter(model: nn.Module) -> None:
    model.features.norm5.weight = nn.Parameter(torch.ones(model.num_features))


def write_through_numpy(model: nn.Module) -> None:
    get_weight(model).detach().numpy()[0, 0] += 1


def change_statistics(model: nn.Module) -> None:
    model.features.norm0.running_var.data[0] *= 2


def load_other_weights(model: nn.Module) -> None:
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})


def train_one_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(make_images(2)).sum().backward()
    optimizer.step()


def replace_module(model: nn.Module) -> None:
    model.features.denseblock1.denselayer1 = model.features.denseblock1.denselayer1.__class__(64, 12, True, 4, 0.0)


def replace_features(model: nn.Module) -> None:
    model.features = copy.deepcopy(model.features)


def add_hook(model: nn.Module) -> None:
    model.features.denseblock2.register_forward_hook(lambda *_: None)


CHANGES = [write_in_no_grad, write_one_value_through_data, negate_through_data, replace_data, replace_parameter, write_through_numpy,
           change_statistics, load_other_weights, train_one_step, replace_module, replace_features, add_hook]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_noticed(change: Callable[[nn.Module], None]) -> None:
    model = dense()
    snapshot = Snapshot(model, thorough=True)
    assert snapshot.is_current()
    change(model)
    assert not snapshot.is_current()


@pytest.mark.parametrize(
    "change", [write_in_no_grad, replace_data, load_other_weights, train_one_step], ids=lambda change: change.__name__
)
def test_counted_writes_are_noticed_without_a_comparison(change: Callable[[nn.Module], None]) -> None:
    model = dense()
    snapshot = Snapshot(model, thorough=False)
    assert snapshot.is_current()
    change(model)
    assert not snapshot.is_current()


def test_changes_of_mode_layout_and_classifier_are_ignored() -> None:
    model = dense().to(memory_format=torch.channels_last)
    snapshot = Snapshot(model, thorough=True)
    model.train()
    model.requires_grad_(False)
    model.classifier.weight.data.zero_()
    model.eval()(make_images(2))
    assert snapshot.is_current()


def test_tensors_with_shared_memory() -> None:
    model = dense()
    model.features.conv0.weight = nn.Parameter(torch.ones(1, 3, 7, 7).expand(24, 3, 7, 7))
    snapshot = Snapshot(model, thorough=True)
    assert snapshot.is_current()
    model.features.norm0.bias.data[0] += 1
    assert not snapshot.is_current()


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = dense()
    snapshot = Snapshot(model, thorough=True)
    assert snapshot.is_current()
    with torch.inference_mode():
        get_weight(model).zero_()
    assert not snapshot.is_current()
