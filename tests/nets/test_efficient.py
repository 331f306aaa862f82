"""Memory-efficient training against the plain path: the same gradients and statistics, from less that is held."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.utils.model import freeze_batch_norm_2d
from torch import nn

from densefeat import DelugeNet, DenseNet
from densefeat.nets.base import StagedNet
from densefeat.nets.efficient import norm_relu_conv
from support.helpers import randomize_statistics, relative_difference

NETWORKS: dict[str, Callable[..., StagedNet]] = {
    "plain": lambda **kw: DenseNet(5, (4, 3), bottleneck=False, compression=1.0, stem_type="cifar", num_classes=4, **kw),
    "BC": lambda **kw: DenseNet(4, (4, 3), bn_size=3, num_classes=4, **kw),
    "DelugeNet": lambda **kw: DelugeNet((6, 8), (4, 3), "cifar", num_classes=4, **kw),
}
each_network = pytest.mark.parametrize("network", NETWORKS)


def pair(network: str, **kwargs: object) -> tuple[StagedNet, StagedNet]:
    """The network with one set of random weights, plain and memory-efficient, in training mode."""
    torch.manual_seed(0)
    plain = randomize_statistics(NETWORKS[network](**kwargs))
    efficient = NETWORKS[network](memory_efficient=True, **kwargs)
    efficient.load_state_dict(plain.state_dict())
    return plain.double().train(), efficient.double().train()


def images(n: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def trained(model: nn.Module, x: torch.Tensor, compiled: Callable | None = None) -> dict[str, torch.Tensor]:
    """Logits, gradients of the input and of all parameters, and buffers, after two steps without an optimiser."""
    x = x.clone().requires_grad_()
    for seed in range(2):
        torch.manual_seed(seed)
        logits = (model if compiled is None else compiled)(x)
        logits.float().logsumexp(1).sum().backward()
    gradients = {f"gradient of {key}": p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), "input": x.grad} | gradients | dict(model.named_buffers())


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def unchanged(model: nn.Module) -> None:
    pass


def every_second_norm_in_eval_mode(model: nn.Module) -> None:
    for norm in norms(model)[::2]:
        norm.eval()


def cumulative_statistics(model: nn.Module) -> None:
    for norm in norms(model):
        norm.momentum = None


def statistics_of_the_batch_in_eval_mode(model: nn.Module) -> None:
    for norm in norms(model):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def statistics_that_stay(model: nn.Module) -> None:
    for norm in norms(model):
        norm.track_running_stats = False


def no_affine_weights(model: nn.Module) -> None:
    for norm in norms(model)[1:]:
        norm.affine, norm.weight, norm.bias = False, None, None


def frozen_norms(model: nn.Module) -> None:
    for norm in norms(model):
        norm.eval().requires_grad_(False)


def frozen_convolutions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.requires_grad_(False)


def frozen_first_block(model: nn.Module) -> None:
    for stage in list(model.features)[:2]:
        stage.requires_grad_(False)


def one_parameter_in_three(model: nn.Module) -> None:
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 == 0)


def timms_frozen_norms(model: nn.Module) -> None:
    freeze_batch_norm_2d(model)


def other_activations(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(name, nn.SiLU())


def other_convolutions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            torch.manual_seed(0)
            module.bias = nn.Parameter(torch.randn(module.out_channels, dtype=torch.float64))


CHANGES = [
    unchanged,
    nn.Module.eval,
    every_second_norm_in_eval_mode,
    cumulative_statistics,
    statistics_of_the_batch_in_eval_mode,
    statistics_that_stay,
    no_affine_weights,
    frozen_norms,
    frozen_convolutions,
    frozen_first_block,
    one_parameter_in_three,
    timms_frozen_norms,
    other_activations,
    other_convolutions,
]


@each_network
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_gradients_and_statistics_are_the_plain_paths(network: str, change: Callable) -> None:
    plain, efficient = pair(network)
    change(plain)
    change(efficient)
    torch.testing.assert_close(trained(efficient, images()), trained(plain, images()), rtol=1e-11, atol=1e-12)


def gradient(results: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the input and all parameters, as one vector: some single ones are nothing but rounding."""
    return torch.cat([value.double().flatten() for key, value in results.items() if key.startswith(("gradient", "input"))])


@each_network
def test_single_precision(network: str) -> None:
    exact = trained(pair(network)[0], images())
    plain, efficient = (trained(model.float(), images(dtype=torch.float32)) for model in pair(network))
    for results in (plain, efficient):
        assert relative_difference(results["logits"], exact["logits"]) < 1e-5
        assert relative_difference(gradient(results), gradient(exact)) < 1e-5
    assert relative_difference(gradient(efficient), gradient(plain)) < 1e-5


def test_dropout_by_the_same_seed() -> None:
    for network in ("plain", "BC"):
        plain, efficient = pair(network, proj_drop_rate=0.3, drop_rate=0.5)
        torch.testing.assert_close(trained(efficient, images()), trained(plain, images()), rtol=1e-11, atol=1e-12)


@each_network
def test_autocast(network: str) -> None:
    exact = trained(pair(network)[0], images(8))
    distances = []
    for model in pair(network):
        with torch.autocast("cpu", torch.bfloat16):
            results = trained(model.float(), images(8, torch.float32))
        assert results["logits"].dtype == torch.bfloat16
        assert {value.dtype for key, value in results.items() if key.startswith("gradient")} == {torch.float32}
        distances.append(relative_difference(gradient(results), gradient(exact)))
    plain, efficient = distances
    assert efficient < 1.2 * plain < 0.2


@each_network
def test_backward_outside_of_autocast_and_half_precision_weights(network: str) -> None:
    _, efficient = pair(network)
    with torch.autocast("cpu", torch.bfloat16):
        loss = efficient.float()(images(dtype=torch.float32)).float().sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in efficient.parameters())
    results = trained(pair(network)[1].bfloat16(), images(dtype=torch.bfloat16))
    assert {value.dtype for value in results.values()} == {torch.bfloat16, torch.int64}
    assert all(value.isfinite().all() for value in results.values())


@each_network
def test_without_gradients_nothing_differs(network: str) -> None:
    plain, efficient = pair(network)
    with torch.no_grad():
        for training in (True, False):
            assert torch.equal(efficient.train(training)(images()), plain.train(training)(images()))
    torch.testing.assert_close(efficient.state_dict(), plain.state_dict(), rtol=0, atol=0)


@each_network
def test_on_the_meta_device(network: str) -> None:
    with torch.device("meta"):
        model = NETWORKS[network](memory_efficient=True).train()
        model(torch.empty(2, 3, 32, 32)).sum().backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@each_network
def test_scriptable(network: str) -> None:
    _, efficient = pair(network)
    efficient.eval()
    torch.testing.assert_close(torch.jit.script(efficient)(images()), efficient(images()))


def test_channels_last_stays() -> None:
    plain, efficient = pair("BC")
    expected = trained(plain, images())
    efficient = efficient.to(memory_format=torch.channels_last)
    layouts = []
    for name in ("features.denseblock1.denselayer2", "features.transition1", "features.denseblock2"):
        module = efficient.get_submodule(name)
        module.register_forward_hook(lambda m, i, o: layouts.append(o.is_contiguous(memory_format=torch.channels_last)))
    results = trained(efficient, images().to(memory_format=torch.channels_last))
    assert layouts == [True] * 6
    torch.testing.assert_close(results, expected, rtol=1e-11, atol=1e-12)


def test_hooks_within_layers_are_called() -> None:
    _, efficient = pair("BC")
    expected = efficient.forward_intermediates(images(), intermediates_only=True)[1]
    taps: list[torch.Tensor] = []
    efficient.features.transition1.norm.register_forward_hook(lambda m, i, o: taps.append(o))
    efficient.features.transition1.conv.register_forward_hook(lambda m, i, o: taps.append(o))
    efficient.features.denseblock1.denselayer2.norm1.register_forward_hook(lambda m, i, o: taps.append(o))
    efficient(images()).sum().backward()
    assert [tap.shape[1] for tap in taps] == [12, 24, 12]
    assert taps[1].shape[2:] == expected.shape[2:]


def test_a_hook_that_changes_a_layers_output_changes_its_statistics() -> None:
    results = []
    for model in pair("BC"):
        model.features.denseblock1.denselayer1.register_forward_hook(lambda m, i, o: 3 * o + 1)
        results.append(trained(model, images()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-11, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["plain", "BC", "DelugeNet"])
def test_compiled(network: str) -> None:
    check_compiled(network, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["DelugeNet"])
def test_compiled_to_code(network: str) -> None:
    check_compiled(network, "inductor")


def check_compiled(network: str, backend: str) -> None:
    torch.compiler.reset()
    plain, efficient = pair(network)
    compiled = torch.compile(efficient, backend=backend, fullgraph=True)
    expected = trained(plain, images())
    torch.testing.assert_close(trained(efficient, images(), compiled), expected, rtol=1e-10, atol=1e-11)


DDP = """
import sys, copy, torch, torch.distributed as dist
from densefeat import DenseNet, DelugeNet
rank, meeting = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
for network in (lambda: DenseNet(4, (3, 2), stem_type="cifar", num_classes=3), lambda: DelugeNet((4, 6), (3, 2), "cifar")):
    torch.manual_seed(0)
    model = network().double().train()
    x = torch.randn(2, 2, 3, 16, 16, dtype=torch.double)
    alone = [copy.deepcopy(model) for _ in range(2)]
    model.set_grad_checkpointing()
    parallel = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    for _ in range(2):
        model.zero_grad()
        parallel(x[rank]).square().sum().backward()
        for part, images in zip(alone, x):
            part.zero_grad()
            part(images).square().sum().backward()
    expected = [(a.grad + b.grad) / 2 for a, b in zip(*(part.parameters() for part in alone))]
    torch.testing.assert_close([p.grad for p in model.parameters()], expected, rtol=1e-10, atol=1e-12)
    if rank == 0:  # the other's buffers start each step as these
        torch.testing.assert_close(list(model.buffers()), list(alone[0].buffers()), rtol=1e-10, atol=1e-12)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    commands = [[sys.executable, "-W", "error", "-c", DDP, str(rank), str(tmp_path / "meeting")] for rank in range(2)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            errors = process.communicate(timeout=120)[1]
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()


def held_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Of all tensors that autograd keeps after a forward pass, each storage once, parameters apart."""
    storages = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum()
    return sum(storage.nbytes() for storage in storages.values())


def dense_block(layers: int, **kwargs: object) -> DenseNet:
    return DenseNet(4, (layers,), stem_type="cifar", num_classes=2, **kwargs).train()


@pytest.mark.parametrize("bottleneck", [True, False])
def test_memory_is_linear_in_depth(bottleneck: bool) -> None:
    x = images(2, torch.float32)
    depths = (30, 60)
    plain = [held_bytes(dense_block(n, bottleneck=bottleneck, bn_size=2), x) for n in depths]
    efficient = [held_bytes(dense_block(n, bottleneck=bottleneck, bn_size=2, memory_efficient=True), x) for n in depths]
    assert plain[1] > (3 if bottleneck else 3.5) * plain[0]
    assert 1.8 < efficient[1] / efficient[0] < 2.05
    assert efficient[1] < 0.2 * plain[1]


def test_what_a_layer_holds() -> None:
    """Its two convolutions' outputs: (bn_size + 1) · k channels, and a few numbers per channel of its input."""
    x = images(2, torch.float32)
    shallow, deep = (held_bytes(dense_block(n, memory_efficient=True), x) for n in (20, 21))
    per_channel = x[:, 0].numel() * 4
    # the block's own output, and the final norm's of that, grow by k each
    assert deep - shallow == pytest.approx((4 + 1 + 2) * 4 * per_channel, rel=0.02)


def test_what_a_composite_layer_holds() -> None:
    """The sum that its first norm reads (2n channels), two bottlenecks (n each) and its output (2n)."""
    x, per_channel = images(2, torch.float32), 2 * 32 * 32 * 4
    held = [held_bytes(DelugeNet((8,), (layers,), "cifar", memory_efficient=True).train(), x) for layers in (9, 10)]
    assert held[1] - held[0] == pytest.approx(6 * 8 * per_channel, rel=0.02)
    plain = [held_bytes(DelugeNet((8,), (layers,), "cifar").train(), x) for layers in (9, 10)]
    assert plain[1] - plain[0] == pytest.approx(10 * 8 * per_channel, rel=0.02)


def test_by_name_and_by_switch() -> None:
    x = images(2, torch.float32)
    for name in ("densefeat_densenet40_k12", "densefeat_delugenet146"):
        structure = {"block_config": (3, 3, 3)}
        model = timm.create_model(name, **structure).train()
        efficient = timm.create_model(name, memory_efficient=True, **structure).train()
        plain, less = held_bytes(model, x), held_bytes(efficient, x)
        assert less < 0.8 * plain
        model.set_grad_checkpointing()
        efficient.set_grad_checkpointing(False)
        assert (held_bytes(model, x), held_bytes(efficient, x)) == (less, plain)


def test_a_copy_trains_by_itself() -> None:
    plain, efficient = pair("BC")
    other = copy.deepcopy(efficient)
    efficient(images()).sum().backward()
    assert all(p.grad is None for p in other.parameters())
    torch.testing.assert_close(trained(other, images()), trained(plain, images()), rtol=1e-11, atol=1e-12)


def test_gradients_are_of_first_order() -> None:
    _, efficient = pair("BC")
    x = images().requires_grad_()
    (first,) = torch.autograd.grad(efficient(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_mixed_types_are_concatenated_as_torch_does() -> None:
    conv = nn.Conv2d(5, 2, 1, bias=False)
    features = [torch.randn(2, 2, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4).bfloat16().requires_grad_()]
    expected = conv(nn.BatchNorm2d(5)(torch.cat(features, 1)).relu())
    results = norm_relu_conv(features, nn.BatchNorm2d(5), nn.ReLU(), conv)
    torch.testing.assert_close(results, expected)
    gradients = [torch.autograd.grad(out.square().sum(), features) for out in (results, expected)]
    torch.testing.assert_close(*gradients)
    assert [value.dtype for value in gradients[0]] == [torch.float32, torch.bfloat16]


def test_one_value_per_channel_is_refused() -> None:
    x = torch.zeros(1, 3, 1, 1, requires_grad=True)
    with pytest.raises(ValueError, match=r"input of shape \(1, 3, 1, 1\): BatchNorm in training needs more than 1 value"):
        norm_relu_conv([x], nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1, bias=False))
