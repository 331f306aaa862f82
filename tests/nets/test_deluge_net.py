"""DelugeNet against a plain, slow re-derivation of the paper's description."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from densefeat import CrossLayerDepthwise, DelugeNet
from support.helpers import randomize_statistics


def bn(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    shape = (1, -1, 1, 1)
    x = (x - m.running_mean.view(shape)) / torch.sqrt(m.running_var.view(shape) + m.eps)
    return x * m.weight.view(shape) + m.bias.view(shape)


def cross_layer(m: CrossLayerDepthwise, outputs: list[torch.Tensor]) -> torch.Tensor:
    """Each output through its own BatchNorm, summed, one more BatchNorm; that one alone for a single output."""
    if len(outputs) == 1:
        return bn(m.norm, outputs[0])
    assert len(m.norms) == len(outputs)
    return bn(m.norm, torch.stack([bn(norm, h) for norm, h in zip(m.norms, outputs, strict=True)]).sum(0))


def bottleneck(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = F.conv2d(x.clamp(min=0), m.conv1.weight)
    x = F.conv2d(bn(m.norm2, x).clamp(min=0), m.conv2.weight, padding=1)
    return F.conv2d(bn(m.norm3, x).clamp(min=0), m.conv3.weight)


def derived_blocks(model: DelugeNet, x: torch.Tensor, imagenet: bool) -> list[torch.Tensor]:
    """What follows each block, from the parameters alone."""
    f, blocks = model.features, []
    if imagenet:
        x = F.max_pool2d(bn(f.norm0, F.conv2d(x, f.conv0.weight, stride=2, padding=3)).clamp(min=0), 3, 2, 1)
    else:
        x = F.conv2d(x, f.conv0.weight, padding=1)
    for number in range(1, 10):
        block = getattr(f, f"block{number}", None)
        if block is None:
            break
        if number > 1:
            x = F.conv2d(x, block.opener.weight, stride=2, padding=1)
        elif imagenet:
            x = F.conv2d(x, block.opener.weight)
        else:
            x = bottleneck(block.opener.bottleneck, bn(block.opener.norm, x))
        outputs = [x]
        for layer in block.layers:
            outputs.append(bottleneck(layer.bottleneck, cross_layer(layer.aggregate, outputs)))
        x = cross_layer(block.aggregate, outputs)
        blocks.append(x)
    blocks[-1] = blocks[-1].clamp(min=0)
    return blocks


@pytest.mark.parametrize("imagenet", [True, False])
def test_forward_equals_the_description(imagenet: bool) -> None:
    torch.manual_seed(0)
    model = DelugeNet((8, 12, 16), (3, 2, 4), "imagenet" if imagenet else "cifar", num_classes=6)
    randomize_statistics(model).eval()
    model.double()
    x = torch.randn(2, 3, 75, 66, dtype=torch.double)
    with torch.no_grad():
        expected = derived_blocks(model, x, imagenet)
        final, maps = model.forward_intermediates(x)
        for block, map_ in zip(expected, maps[1:], strict=True):
            torch.testing.assert_close(map_, block)
        logits = model.classifier(expected[-1].mean((2, 3)))
        torch.testing.assert_close(model(x), logits)
        assert torch.equal(final, maps[-1])


def test_composite_layers_of_the_published_networks() -> None:
    with torch.device("meta"):
        cifar, imagenet = timm.create_model("densefeat_delugenet146"), timm.create_model("densefeat_delugenet92")
    assert [len(getattr(cifar.features, f"block{i}").layers) for i in (1, 2, 3)] == [7, 16, 24]  # block 1's first is its opener
    assert [len(getattr(imagenet.features, f"block{i}").layers) for i in (1, 2, 3, 4)] == [7, 7, 8, 8]


def test_cross_layer_weights_start_as_a_mean() -> None:
    layer = CrossLayerDepthwise(5, 4)
    assert all(torch.equal(norm.weight, torch.full((5,), 0.25)) for norm in layer.norms)
    assert all(torch.equal(norm.bias, torch.zeros(5)) for norm in layer.norms)


@pytest.mark.parametrize("num_inputs", [1, 2, 7])
def test_folded_sum_follows_every_change_of_the_parameters(num_inputs: int) -> None:
    layer = randomize_statistics(CrossLayerDepthwise(6, num_inputs)).eval()
    outputs = [torch.randn(3, 6, 5, 4) for _ in range(num_inputs)]
    for seed in (1, 2):
        torch.testing.assert_close(layer(outputs), cross_layer(layer, outputs), rtol=1e-5, atol=1e-5)
        layer.train()(outputs)  # moves the statistics
        layer.eval()
        torch.testing.assert_close(layer(outputs), cross_layer(layer, outputs), rtol=1e-5, atol=1e-5)
        randomize_statistics(layer, seed)


def test_folded_sum_is_differentiable() -> None:
    layer = randomize_statistics(CrossLayerDepthwise(4, 3)).double().eval()
    outputs = [torch.randn(2, 4, 3, 3, dtype=torch.double) for _ in range(3)]
    gradients = []
    for function in (lambda: layer(outputs), lambda: cross_layer(layer, outputs)):
        layer.zero_grad()
        function().square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    torch.testing.assert_close(*gradients)


def test_training_statistics_move_and_evaluation_leaves_them() -> None:
    layer = CrossLayerDepthwise(4, 2)
    outputs = [torch.randn(8, 4, 3, 3) for _ in range(2)]
    layer.eval()(outputs)
    assert all(torch.equal(norm.running_mean, torch.zeros(4)) for norm in layer.norms)
    layer.train()(outputs)
    assert not any(torch.equal(norm.running_mean, torch.zeros(4)) for norm in layer.norms)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(block_config=(7, 7)), r"block_widths=\(64, 128, 256, 512\), block_config=\(7, 7\): give one positive width"),
        (dict(block_widths=(0, 1, 2, 3)), r"block_widths=\(0, 1, 2, 3\)"),
        (dict(block_config=(7, 1, 8, 8)), "at least 2 composite layers"),
        (dict(stem_type="svhn"), "stem_type='svhn': choose one of"),
    ],
)
def test_structures_that_do_not_exist(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DelugeNet(**arguments)
