"""Divergence: the first step with a bad loss or gradient, and the gradient norms of each block."""

import math

import pytest
import timm
import torch
from torch import nn

import densefeat  # noqa: F401  (registers the models)
from densefeat.training.watch import Watch, format_divergence


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("densefeat_densenet40_k12", num_classes=10)
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    return model


def test_norms_by_block(model: nn.Module) -> None:
    watch = Watch(model, math.log(10), check_gradients=True)
    norms = dict(zip(watch.blocks, watch.gradient_norms().tolist(), strict=True))
    assert list(norms) == [
        "features.conv0", "features.denseblock1", "features.transition1", "features.denseblock2", "features.transition2",
        "features.denseblock3", "features.norm5", "classifier",
    ]  # fmt: skip
    block = [p.grad.flatten() for name, p in model.named_parameters() if "denseblock2" in name and p.grad is not None]
    assert norms["features.denseblock2"] == pytest.approx(torch.cat(block).norm().item(), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1000.0])
def test_the_first_bad_step_is_reported(model: nn.Module, bad: float) -> None:
    watch = Watch(model, math.log(10), check_gradients=True)
    for step, loss in enumerate((2.3, 40.0, bad, float("nan"), 2.3), 7):
        watch.record(step, torch.tensor(loss))
    report = watch.find_divergence()
    assert report is not None
    assert report["step"] == 9
    assert "diverged at step 9: loss " in format_divergence(report)
    assert "features.denseblock3 " in format_divergence(report)
    assert watch.find_divergence() is None


def test_a_high_first_loss_raises_the_limit(model: nn.Module) -> None:
    watch = Watch(model, math.log(10), check_gradients=True)
    watch.record(0, torch.tensor(1e4))
    watch.record(1, torch.tensor(1e5))
    assert watch.find_divergence() is None
    watch.record(2, torch.tensor(3e5))
    assert watch.find_divergence() is not None


def test_infinite_gradients_are_allowed_with_a_scaler(model: nn.Module) -> None:
    next(model.parameters()).grad[0] = float("inf")  # type: ignore[index]
    for check in (True, False):
        watch = Watch(model, math.log(10), check)
        watch.record(3, torch.tensor(2.0))
        assert (watch.find_divergence() is None) is not check
