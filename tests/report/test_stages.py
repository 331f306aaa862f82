"""Shapes, parameters, arithmetic and bytes against torch's own counts, and the receptive field against gradients."""

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from densefeat.errors import UsageError
from densefeat.report.stages import Field, _group_modules, stages_of, sum_stages
from support.small_nets import deluge, dense

NETWORKS = {
    "dense": dense,
    "plain": lambda: dense(bottleneck=False, compression=1.0),
    "dense with ImageNet's stem": lambda: dense(stem_type="imagenet"),
    "deluge": deluge,
    "deluge with ImageNet's stem": lambda: deluge(stem_type="imagenet"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_arithmetic(name: str) -> None:
    model = NETWORKS[name]()
    stages = stages_of(model, 64)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64))
    sums = 0 if "dense" in name or name == "plain" else cross_layer_sums(model)
    assert 2 * (sum_stages(stages).macs - sums) == counter.get_total_flops()
    assert sum_stages(stages).parameters == sum(parameter.numel() for parameter in model.parameters())
    assert stages[-1].shape == (5,)
    assert (stages[0].name, stages[-1].name) == ("stem", "head")


def cross_layer_sums(model: nn.Module) -> int:
    """Count what torch's counter leaves out: a multiplication for each value of each input of a cross-layer layer."""
    counted = 0

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal counted
        counted += len(inputs[0]) * output.numel()

    for name, module in model.named_modules():
        if name.endswith("aggregate"):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64))
    return counted


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_what_the_network_hands_on(name: str) -> None:
    model = NETWORKS[name]()
    x = torch.zeros(1, 3, 64, 64)
    for stage, (named, modules) in zip(stages_of(model, 64)[:-1], _group_modules(model)[:-1], strict=True):
        for module in modules:
            x = module(x)
        assert (stage.name, stage.shape) == (named, tuple(x.shape[1:]))
        assert stage.parameters == sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_bytes(trained: nn.Module) -> None:
    stages = stages_of(trained, 32)
    state = trained.state_dict()
    assert sum_stages(stages).weight_bytes == sum(value.numel() * value.element_size() for value in state.values())
    layers = 32 * 32 * (16 * 48 + 16 * 12)  # of block 1: bottlenecks and outputs
    assert stages[1].activation_bytes == 4 * layers


def test_the_network_stays_as_it_is(trained: nn.Module) -> None:
    stages_of(trained, 32)
    assert next(trained.parameters()).device.type == "cpu"
    assert not any(module._forward_hooks for module in trained.modules())


@pytest.mark.parametrize(
    ("name", "size", "wanted"),
    [
        ("densenet121", 224, (7_978_856, 2071)),  # parameters of the paper's network
        ("densefeat_delugenet92", 224, (43_404_072, 1003)),
    ],
)
def test_published_networks(name: str, size: int, wanted: tuple[int, int]) -> None:
    with torch.device("meta"):
        stages = stages_of(timm.create_model(name), size)
    assert (sum_stages(stages).parameters, stages[-2].field.size) == wanted
    assert [stage.field.stride for stage in stages if stage.name.endswith(tuple("1234")) and "block" in stage.name] == [
        4,
        8,
        16,
        32,
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_receptive_field_is_where_gradients_come_from(name: str) -> None:
    """Of one value in the middle of each stage's map, over several images, no weight negative: no way is closed by chance."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.abs_()
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.bias.data.abs_()
    side = 192
    stages = stages_of(model.float(), side)[:-1]
    model.double()
    for stage, maps in zip(stages, compute_maps(model, side), strict=True):
        image, value = maps
        rows, columns = seen(image, value, stage.shape[1])
        assert (rows, columns) == (stage.field.size, stage.field.size), stage.name
        assert shift(image, value, stage.shape[1]) == stage.field.stride, stage.name


def compute_maps(model: nn.Module, side: int):
    """Return for each stage but the head images that want a gradient, and the stage's maps."""
    for number in range(len(_group_modules(model)) - 1):
        image = torch.rand(6, 3, side, side, dtype=torch.float64, requires_grad=True)
        x = image
        for _, modules in _group_modules(model)[: number + 1]:
            for module in modules:
                x = module(x)
        yield image, x


def reached(image: torch.Tensor, value: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Return bool ``(H, W)``: the pixels on which any channel at a place depends, in any of the images."""
    (gradient,) = torch.autograd.grad(value[:, :, row, column].sum(), image, retain_graph=True)
    return (gradient != 0).any(0).any(0)


def seen(image: torch.Tensor, value: torch.Tensor, side: int) -> tuple[int, int]:
    there = reached(image, value, side // 2, side // 2).nonzero()
    high, wide = (there.max(0).values - there.min(0).values + 1).tolist()
    return high, wide


def shift(image: torch.Tensor, value: torch.Tensor, side: int) -> int:
    """Return by how many pixels the field moves from one value to the next."""
    one, other = (reached(image, value, side // 2 + step, side // 2).nonzero()[:, 0].min() for step in (0, 1))
    return int(other - one)


def test_blurred_pooling() -> None:
    assert Field().after(BlurPool2d(4)) == Field(3, 2)
    assert stages_of(timm.create_model("densenetblur121d"), 64)[-2].field is not None


def test_unknown_modules_are_refused() -> None:
    with pytest.raises(UsageError, match="GELU: its effect on the receptive field is not known"):
        Field().after(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()))
    with pytest.raises(UsageError, match="ResNet: its connections are not known"):
        stages_of(timm.create_model("resnet18"), 64)
