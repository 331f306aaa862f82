"""Both engines for the CPU compute what the plain network does, for any images, batches, blocks and outputs."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from densefeat.features.engines.choose import build_engine
from densefeat.features.engines.engine import Engine
from densefeat.nets.zoo import VARIANTS
from support.engines import assert_close_outputs, compute_reference, deluge, dense, make_images, make_spec, perturb_norms

Make = Callable[..., Engine]


@pytest.fixture(params=["buffer", "openvino"])
def engine_for(request: pytest.FixtureRequest) -> Make:
    """Make an engine for a model, with the options of ``make_spec``."""
    return lambda model, *options: build_engine(request.param, model, make_spec(*options))


def check_network(engine_for: Make, model: nn.Module, x: torch.Tensor, tap: str, blocks: tuple[int, ...]) -> None:
    assert_close_outputs(engine_for(model, blocks, tap)(x, True, True), compute_reference(model, x, blocks, tap))


QUICK_VARIANTS = {"densefeat_densenet121", "densefeat_densenet40_k12", "densefeat_densenet_bc100_k12", "densefeat_delugenet146"}


@pytest.mark.parametrize("tap", ["norm", "raw"])
@pytest.mark.parametrize(
    "name", [name if name in QUICK_VARIANTS else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_every_variant_with_few_layers(engine_for: Make, name: str, tap: str) -> None:
    cls, structure = VARIANTS[name]
    count = len(structure["block_config"])
    torch.manual_seed(0)
    model = perturb_norms(cls(**(structure | dict(block_config=(3,) * count))))
    check_network(engine_for, model, make_images(2, 64, 64) if count == 4 else make_images(2, 32, 32), tap, tuple(range(count)))


@pytest.mark.parametrize("make", [dense, deluge])
@pytest.mark.parametrize("tap", ["norm", "raw"])
def test_odd_sizes_and_batches(engine_for: Make, make: type, tap: str) -> None:
    model = make()
    engine = engine_for(model, (0, 1), tap)
    for number, height, width in ((1, 97, 131), (2, 64, 64), (3, 97, 131), (7, 33, 48), (1, 224, 32)):
        x = make_images(number, height, width)
        assert_close_outputs(engine(x, True, True), compute_reference(model, x, tap=tap))


@pytest.mark.parametrize(
    "model",
    [
        dense(bottleneck=False, compression=1.0, stem_type="cifar"),
        dense(compression=0.57, growth_rate=7),
        dense(block_config=(1, 1)),
        dense(in_chans=5),
        deluge(stem_type="cifar"),
        deluge(block_config=(2, 2)),
    ],
    ids=["plain", "channels-of-no-vector", "one-layer", "five-channels", "opening-layer", "two-outputs"],
)
def test_structures(engine_for: Make, model: nn.Module) -> None:
    x = torch.randn(2, model.in_chans, 40, 33, generator=torch.Generator().manual_seed(0))
    check_network(engine_for, model, x, "norm", (0, 1))


@pytest.mark.parametrize("blocks", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("tap", ["norm", "raw"])
def test_selected_blocks(engine_for: Make, blocks: tuple[int, ...], tap: str) -> None:
    check_network(engine_for, dense(), make_images(2, 48, 48), tap, blocks)


def test_only_requested_outputs_are_computed(engine_for: Make) -> None:
    engine, x = engine_for(dense()), make_images(2)
    both = engine(x, True, True)
    for mean, maps in ((True, False), (False, True)):
        for single, output in zip(engine(x, mean, maps), both, strict=True):
            assert (single.mean is None, single.maps is None) == (not mean, not maps)
            torch.testing.assert_close(single.mean if mean else single.maps, output.mean if mean else output.maps)


@pytest.mark.parametrize("change", [
    lambda x: x.to(memory_format=torch.channels_last),
    lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    lambda x: x.repeat(2, 1, 1, 1)[::2],
    lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    lambda x: x[:1].expand(3, -1, -1, -1),
    lambda x: x.clone().requires_grad_(),
])  # fmt: skip
def test_strides(engine_for: Make, change: object) -> None:
    model = dense()
    x = change(make_images(3, 48, 56))
    before = x.detach().clone()
    outputs = engine_for(model)(x, True, True)
    assert not any(output.mean.requires_grad for output in outputs)
    assert torch.equal(x, before)
    assert_close_outputs(outputs, compute_reference(model, x.detach().contiguous()))


@pytest.mark.parametrize("make", [dense, deluge])
def test_later_calls_do_not_change_results(engine_for: Make, make: type) -> None:
    engine = engine_for(make())
    first = engine(make_images(3), True, True)
    copies = [(output.mean.clone(), output.maps.clone()) for output in first]
    engine(make_images(4), True, True)
    engine(-make_images(3), True, True)
    for output, (mean, maps) in zip(first, copies, strict=True):
        assert torch.equal(output.mean, mean)
        assert torch.equal(output.maps, maps)
        output.mean.zero_()
        output.maps.zero_()
    assert torch.equal(engine(make_images(3), True, True)[0].mean, copies[0][0])


def test_calls_from_several_threads(engine_for: Make) -> None:
    engine = engine_for(dense())
    batches = [make_images(n) for n in (2, 3, 4, 5)]
    expected = [engine(x, True, False)[1].mean for x in batches]
    equal: list[bool] = []

    def call(i: int) -> None:
        equal.extend(torch.equal(engine(batches[i], True, False)[1].mean, expected[i]) for _ in range(10))

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert equal == [True] * 40


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_image_breaks_only_its_row(engine_for: Make, value: float) -> None:
    engine, x = engine_for(dense()), make_images(3)
    whole = engine(x, True, True)
    x[1, 0, 5, 5] = value
    for output, before in zip(engine(x, True, True), whole, strict=True):
        assert output.mean[1].isnan().all()
        assert output.maps[1].isnan().all()
        assert torch.equal(output.mean[[0, 2]], before.mean[[0, 2]])


@pytest.mark.parametrize("values", [(float("nan"), 1.0), pytest.param((float("inf"), -float("inf")), marks=pytest.mark.slow)])
@pytest.mark.parametrize("tap", ["norm", "raw"])
@pytest.mark.parametrize(
    "module", ["denseblock1.denselayer2.norm2", "denseblock2.denselayer1.conv1", "transition1.conv", "norm5"]
)
def test_broken_weights_break_the_blocks_that_read_them(
    engine_for: Make, module: str, tap: str, values: tuple[float, float]
) -> None:
    model, x = dense(), make_images(2)
    model.features.get_submodule(module).weight.data.flatten()[:2] = torch.tensor(values)
    outputs, expected = engine_for(model, (0, 1, 2), tap)(x, True, False), compute_reference(model, x, (0, 1, 2), tap)
    broken = [not output.mean.isfinite().all() for output in outputs]
    assert broken == [not output.mean.isfinite().all() for output in expected]
    assert any(broken) or (module, tap) == ("norm5", "raw")


@pytest.mark.parametrize("make", [dense, deluge])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_its_batch(engine_for: Make, make: type, precision: str) -> None:
    engine, x = engine_for(make(), (0, 1), "norm", precision), make_images(33)
    whole = engine(x, True, False)[1].mean
    for number in (1, 2, 5, 17, 32):
        torch.testing.assert_close(engine(x[:number], True, False)[1].mean, whole[:number], rtol=1e-6, atol=1e-6)
