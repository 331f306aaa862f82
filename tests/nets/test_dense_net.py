"""DenseNet against torchvision's and timm's, and its structures against the paper's description."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from densefeat import DenseNet
from support.helpers import randomize_statistics

NAMES = [
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
]  # they differ by numbers alone: two are enough for quick runs
each_name = pytest.mark.parametrize(
    "name", [name if name in NAMES[:2] else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)


@each_name
def test_equals_torchvision_on_shared_weights(name: str) -> None:
    torch.manual_seed(0)
    theirs = randomize_statistics(getattr(torchvision.models, name)()).eval()
    ours = timm.create_model(f"densefeat_{name}").eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@each_name
def test_intermediates_equal_timms_tensor_for_tensor(name: str) -> None:
    torch.manual_seed(0)
    theirs = randomize_statistics(timm.create_model(name)).eval()
    ours = timm.create_model(f"densefeat_{name}").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 65, 96)
    with torch.no_grad():
        for a, b in zip(
            ours.forward_intermediates(x, intermediates_only=True),
            theirs.forward_intermediates(x, intermediates_only=True),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_features_only_equals_timms_tensor_for_tensor() -> None:
    theirs = randomize_statistics(timm.create_model("densenet121", features_only=True)).eval()
    ours = timm.create_model("densefeat_densenet121", features_only=True).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(ours(x), theirs(x), strict=True))


def derived(model: DenseNet, x: torch.Tensor) -> torch.Tensor:
    """Section 3 of the paper from the parameters alone: every layer reads the concatenation of all before it."""

    def norm_relu(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        x = (x - m.running_mean.view(shape)) / torch.sqrt(m.running_var.view(shape) + m.eps)
        return (x * m.weight.view(shape) + m.bias.view(shape)).clamp(min=0)

    f = model.features
    x = F.conv2d(x, f.conv0.weight, padding=1)
    for number in range(1, 10):
        block = getattr(f, f"denseblock{number}", None)
        if block is None:
            break
        for layer in block.values():
            h = F.conv2d(norm_relu(layer.norm1, x), layer.conv1.weight, padding=layer.conv1.weight.shape[-1] // 2)
            if layer.bottleneck:
                h = F.conv2d(norm_relu(layer.norm2, h), layer.conv2.weight, padding=1)
            x = torch.cat([x, h], 1)
        if transition := getattr(f, f"transition{number}", None):
            x = F.conv2d(norm_relu(transition.norm, x), transition.conv.weight)
            x = F.avg_pool2d(x, 2)
    return model.classifier(norm_relu(f.norm5, x).mean((2, 3)))


@pytest.mark.parametrize(
    ("structure", "bottleneck", "compression", "stem"),
    [("plain", False, 1.0, 16), ("B", True, 1.0, 16), ("C", False, 0.5, 16), ("BC", True, 0.5, 24), ("BC", True, 0.37, 24)],
)
def test_structures(structure: str, bottleneck: bool, compression: float, stem: int) -> None:
    torch.manual_seed(0)
    model = DenseNet(12, (3, 4, 2), bottleneck=bottleneck, compression=compression, bn_size=3, stem_type="cifar", num_classes=7)
    randomize_statistics(model).eval()
    assert model.features.conv0.out_channels == stem, structure
    assert model.features.transition1.conv.out_channels == int((stem + 36) * compression)
    x = torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        torch.testing.assert_close(model(x), derived(model, x), rtol=1e-5, atol=1e-5)


def test_dropout_follows_every_convolution_but_the_first() -> None:
    model = DenseNet(4, (2, 2), stem_type="cifar", proj_drop_rate=0.5, num_classes=3).train()
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    x = torch.randn(2, 3, 32, 32)
    rates: list[float] = []

    class Dropouts(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.dropout:
                rates.append(kwargs["p"])
            return func(*args, **(kwargs or {}))

    with Dropouts():
        model(x)
    assert rates == [0.5] * (convolutions - 1) + [0.0]  # the last is the classifier's own
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("bottleneck", [True, False])
def test_checkpointing_changes_nothing_but_memory(bottleneck: bool) -> None:
    results = []
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for enable in (False, True):
        torch.manual_seed(0)
        model = DenseNet(8, (8, 8), bottleneck=bottleneck, stem_type="cifar", num_classes=5).train()
        model.set_grad_checkpointing(enable)
        saved: list[int] = []

        def count(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(x).square().mean()
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()], sum(saved)))
    torch.testing.assert_close(results[0][:2], results[1][:2])
    assert results[1][2] < 0.7 * results[0][2]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(growth_rate=0), "growth_rate=0, bn_size=4: both must be at least 1"),
        (dict(bn_size=0), "growth_rate=32, bn_size=0"),
        (dict(block_config=()), r"block_config=\(\): give one positive number"),
        (dict(block_config=(6, 0, 3)), r"block_config=\(6, 0, 3\)"),
        (dict(compression=0), r"compression=0: must be in \(0, 1\]"),
        (dict(compression=1.5), "compression=1.5"),
        (dict(compression=1e-6), "compression=1e-06: keeps none of 256 channels"),
        (dict(stem_type="svhn"), "stem_type='svhn': choose one of 'imagenet', 'cifar'"),
    ],
)
def test_structures_that_do_not_exist(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DenseNet(**arguments)
