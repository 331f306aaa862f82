"""What other programs do to networks: exchange modules, hook them, freeze them. Nothing else of the network may change by it."""

import copy
from collections.abc import Callable

import pytest
import timm.layers
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from densefeat.heads import HeadedNet
from densefeat.nets.base import StagedNet
from densefeat.nets.deluge_net import Bottleneck, CrossLayerDepthwise
from support.small_nets import deluge, dense

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "plain": lambda **kw: dense(bottleneck=False, compression=1.0, **kw),
    "B": lambda **kw: dense(compression=1.0, **kw),
    "C": lambda **kw: dense(bottleneck=False, **kw),
    "BC": dense,
    "BC-imagenet": lambda **kw: dense(stem_type="imagenet", **kw),
    "deluge": deluge,
    "deluge-imagenet": lambda **kw: deluge(stem_type="imagenet", **kw),
    "cross-layer head": lambda **kw: HeadedNet(dense(num_classes=0, **kw), "cross-layer", 6, 5).eval(),
}
each_network = pytest.mark.parametrize("name", NETWORKS)
each_way = pytest.mark.parametrize("efficient", [False, True], ids=["kept", "efficient"])


def make_images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def compute(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Logits and, of a network without a head of ours, the maps of all stages."""
    maps = model.forward_intermediates(x, intermediates_only=True) if isinstance(model, StagedNet) else []
    return [model(x), *maps]


def list_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def count_relus(model: nn.Module) -> int:
    """Count the calls of ReLU modules in a forward pass."""
    calls: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda m, *_: calls.append(m)) for m in model.modules() if type(m) is nn.ReLU]
    model(make_images())
    for handle in handles:
        handle.remove()
    return len(calls)


def use_group_norms(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    for name, norm in list_norms(model):
        model.set_submodule(name, nn.GroupNorm(1, norm.num_features))
    return model


@each_network
@each_way
@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.convert_sync_batchnorm])
def test_synchronised_norms_compute_the_same_bits(name: str, efficient: bool, convert: Callable) -> None:
    plain, x = NETWORKS[name](memory_efficient=efficient), make_images()
    converted = convert(copy.deepcopy(plain))
    assert {type(norm) for _, norm in list_norms(converted)} == {nn.SyncBatchNorm}
    assert list(converted.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(compute(converted, x), compute(plain, x), rtol=0, atol=0)


@each_network
def test_other_norms_leave_the_activations(name: str) -> None:
    """GroupNorm has no modes: with it a network computes the same in both, by every way."""
    model = use_group_norms(NETWORKS[name]())
    efficient = use_group_norms(NETWORKS[name](memory_efficient=True))
    efficient.load_state_dict(model.state_dict())
    assert count_relus(model) == count_relus(NETWORKS[name]())
    x = make_images()
    in_eval = compute(model, x)
    for other in (model.train(), efficient, efficient.train()):
        torch.testing.assert_close(compute(other, x), in_eval)


@each_network
@each_way
@pytest.mark.parametrize("training", [False, True])
def test_hooks_keep_what_modules_returned(name: str, efficient: bool, training: bool) -> None:
    model = NETWORKS[name](memory_efficient=efficient).train(training)
    kept: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for module_name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, out, name=module_name: kept.append((name, out, out.detach().clone())))
    model(make_images())
    called = {module_name for module_name, *_ in kept}
    kinds = (nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.Linear, CrossLayerDepthwise, Bottleneck)
    assert not [
        module_name for module_name, module in model.named_modules() if isinstance(module, kinds) and module_name not in called
    ]
    assert not [module_name for module_name, output, before in kept if not torch.equal(output, before)]


@each_network
@each_way
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # on layers, whose argument is a list
def test_full_backward_hooks(name: str, efficient: bool, training: bool) -> None:
    plain = NETWORKS[name](memory_efficient=efficient).double().train(training)
    hooked, x = copy.deepcopy(plain), make_images().double().requires_grad_()
    ran: set[str] = set()
    for module_name, module in hooked.named_modules():
        module.register_full_backward_hook(lambda *_, name=module_name: ran.add(name))
    for model in (plain, hooked):
        model(x).logsumexp(1).sum().backward()
    assert {module_name for module_name, _ in list_norms(hooked)} <= ran
    gradients = [[parameter.grad for parameter in model.parameters()] for model in (plain, hooked)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-11)


@each_network
@each_way
def test_frozen_norms_keep_their_statistics(name: str, efficient: bool) -> None:
    model = NETWORKS[name](memory_efficient=efficient)
    before = {key: value.clone() for key, value in model.named_buffers()}
    model.train()
    for _, norm in list_norms(model):
        norm.eval().requires_grad_(False)
    model(make_images()).sum().backward()
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    assert all(parameter.grad is None for _, norm in list_norms(model) for parameter in norm.parameters())


@each_network
@pytest.mark.parametrize("which", [slice(None), slice(0, 1), slice(None, None, 3)], ids=["all", "first", "every third"])
def test_single_norms_in_training_mode(name: str, which: slice) -> None:
    """As for statistics of the test images: the norms that are not in training mode behave as frozen ones do."""
    in_eval, frozen = NETWORKS[name]().double(), NETWORKS[name]().double().train()
    for model in (in_eval, frozen):
        for i, (_, norm) in enumerate(list_norms(model)):
            norm.train(i in range(len(list_norms(model)))[which])
    x = make_images().double()
    torch.testing.assert_close(compute(in_eval, x), compute(frozen, x))


@each_network
def test_initialisation_by_apply_reaches_every_norm(name: str) -> None:
    seen: list[nn.Module] = []
    model = NETWORKS[name]().apply(lambda module: seen.append(module) if isinstance(module, nn.BatchNorm2d) else None)
    own = [key for key in model.state_dict() if key.endswith("running_var")]
    assert len(seen) == len(own)
    assert {type(norm) for norm in seen} == {nn.BatchNorm2d}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "cross-layer head"])
def test_traced_networks_are_fused(name: str) -> None:
    """torch.fx traces a network and folds norms into the convolutions before them: the ReLUs between them stay."""
    model, x = NETWORKS[name](), make_images()
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
        torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fusing_by_name() -> None:
    triples = {
        "BC-imagenet": [["features.conv0", "features.norm0", "features.act0"]],
        "deluge": [[f"features.block2.layers.0.bottleneck.{part}" for part in names]
                   for names in (("conv1", "norm2", "act2"), ("conv2", "norm3", "act3"))],
    }  # fmt: skip
    for name, modules in triples.items():
        model, x = NETWORKS[name](), make_images()
        fused = torch.ao.quantization.fuse_modules(copy.deepcopy(model), modules)
        assert len(list_norms(fused)) == len(list_norms(model)) - len(modules)
        with torch.no_grad():
            torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
