"""Snapshot: any change of a model is noticed, however it was made; and none is where there is none."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from densefeat.features.engines.snapshot import Snapshot
from support.engines import dense, images


def weight(model: nn.Module) -> torch.Tensor:
    return model.features.denseblock1.denselayer2.conv1.weight


def in_no_grad(model: nn.Module) -> None:
    with torch.no_grad():
        weight(model)[3, 2, 0, 0] = 7


def one_value_through_data(model: nn.Module) -> None:
    weight(model).data[3, 2, 0, 0] = 7


def negated_through_data(model: nn.Module) -> None:
    weight(model).data.neg_()


def another_tensor_as_data(model: nn.Module) -> None:
    weight(model).data = weight(model).data.clone()


def another_parameter(model: nn.Module) -> None:
    model.features.norm5.weight = nn.Parameter(torch.ones(model.num_features))


def through_numpy(model: nn.Module) -> None:
    weight(model).detach().numpy()[0, 0] += 1


def statistics(model: nn.Module) -> None:
    model.features.norm0.running_var.data[0] *= 2


def other_weights(model: nn.Module) -> None:
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})


def a_step_of_training(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(images(2)).sum().backward()
    optimizer.step()


def another_module(model: nn.Module) -> None:
    model.features.denseblock1.denselayer1 = model.features.denseblock1.denselayer1.__class__(64, 12, True, 4, 0.0)


def another_trunk(model: nn.Module) -> None:
    model.features = copy.deepcopy(model.features)


def a_hook(model: nn.Module) -> None:
    model.features.denseblock2.register_forward_hook(lambda *_: None)


CHANGES = [in_no_grad, one_value_through_data, negated_through_data, another_tensor_as_data, another_parameter, through_numpy,
           statistics, other_weights, a_step_of_training, another_module, another_trunk, a_hook]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_noticed(change: Callable[[nn.Module], None]) -> None:
    model = dense()
    snapshot = Snapshot(model, thorough=True)
    assert snapshot.holds()
    change(model)
    assert not snapshot.holds()


@pytest.mark.parametrize(
    "change", [in_no_grad, another_tensor_as_data, other_weights, a_step_of_training], ids=lambda change: change.__name__
)
def test_counted_writes_are_noticed_without_comparing(change: Callable[[nn.Module], None]) -> None:
    model = dense()
    snapshot = Snapshot(model, thorough=False)
    assert snapshot.holds()
    change(model)
    assert not snapshot.holds()


def test_what_changes_no_number_is_none() -> None:
    model = dense().to(memory_format=torch.channels_last)
    snapshot = Snapshot(model, thorough=True)
    model.train()
    model.requires_grad_(False)
    model.classifier.weight.data.zero_()
    model.eval()(images(2))
    assert snapshot.holds()


def test_tensors_that_are_not_dense() -> None:
    model = dense()
    model.features.conv0.weight = nn.Parameter(torch.ones(1, 3, 7, 7).expand(24, 3, 7, 7))
    snapshot = Snapshot(model, thorough=True)
    assert snapshot.holds()
    model.features.norm0.bias.data[0] += 1
    assert not snapshot.holds()


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = dense()
    snapshot = Snapshot(model, thorough=True)
    assert snapshot.holds()
    with torch.inference_mode():
        weight(model).zero_()
    assert not snapshot.holds()
