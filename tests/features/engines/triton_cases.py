"""The Triton engine in Triton's interpreter, on the CPU: ``test_triton.py`` runs this file in a process of its own.

Memory that nothing has been written to is full of NaN here, so that whatever reads it shows.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densefeat import DelugeNet, DenseNet, UsageError
from densefeat.features.engines.engine import BlockOutput, EngineSpec
from densefeat.features.engines.folded import Conv, Norm, Sum, fold
from densefeat.features.engines.triton import engine as engine
from densefeat.features.engines.triton import ops as ops
from densefeat.features.engines.triton.kernels import INTERPRETED
from densefeat.features.engines.triton.ops import Filters, Maps, ScaleShift
from densefeat.features.engines.triton.tuning import _TILES, Blocks, _candidates
from densefeat.nets.zoo import VARIANTS
from support.engines import perturbed
from support.helpers import relative_difference

# numpy's: columns beyond a map's channels hold NaN, and are multiplied before they are put to zero
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
CPU = torch.device("cpu")
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    assert INTERPRETED.value
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


# kernels


def maps_of(x: torch.Tensor) -> Maps:
    """``(N, C, H, W)`` as rows, NaN beyond the channels."""
    images, channels, height, width = x.shape
    maps = Maps.empty(images, height, width, channels, x)
    maps.rows[:, :channels] = x.permute(0, 2, 3, 1).flatten(0, 2)
    return maps


def made_norm(channels: int) -> Norm:
    return Norm(torch.randn(channels).double(), torch.randn(channels).double())


def normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return F.relu(x.double() * norm.scale[:, None, None] + norm.shift[:, None, None])


def made_conv(channels: int, outputs: int, kernel: int, stride: int = 1, after: bool = False) -> Conv:
    """``after``: with a bias and ReLU."""
    weight = torch.randn(outputs, channels, kernel, kernel).double() / channels**0.5
    return Conv(weight, torch.randn(outputs).double() if after else None, stride, kernel // 2, after)


def convolved(x: torch.Tensor, conv: Conv) -> torch.Tensor:
    y = F.conv2d(x.double(), conv.weight, conv.bias, conv.stride, conv.padding)
    return F.relu(y) if conv.relu else y


def assert_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert found.shape == expected.shape
    assert relative_difference(found.float(), expected) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "outputs", "after"), [(48, 16, True), (20, 12, False), (70, 140, True)])
def test_pointwise_of_a_norm(channels: int, outputs: int, after: bool, dtype: torch.dtype) -> None:
    x, norm, conv = torch.randn(3, channels, 7, 9).to(dtype), made_norm(channels), made_conv(channels, outputs, 1, after=after)
    out = Maps.empty(3, 7, 9, outputs, x)
    ops.pointwise(maps_of(x), Filters.of(conv, CPU, dtype), out, ScaleShift.of(norm, CPU))
    assert_close(out.nchw(), convolved(normed(x, norm), conv), dtype)


@pytest.mark.parametrize("channels", [32, 24])
def test_pointwise_of_a_map_itself(channels: int) -> None:
    x, conv = torch.randn(2, channels, 5, 6), made_conv(channels, 18, 1)
    out = Maps.empty(2, 5, 6, 18, x)
    ops.pointwise(maps_of(x), Filters.of(conv, CPU, x.dtype), out)
    assert_close(out.nchw(), convolved(x, conv))


def made_stack(count: int, channels: int) -> tuple[torch.Tensor, torch.Tensor, Sum]:
    """Maps ``(n, N, C, H, W)``, as a stack of rows, and a sum over them."""
    x = torch.randn(count, 2, channels, 6, 5)
    total = Sum(torch.randn(count, channels).double(), torch.randn(channels).double())
    return x, torch.stack([maps_of(each).rows for each in x]), total


def summed(x: torch.Tensor, total: Sum) -> torch.Tensor:
    return (x.double() * total.weights[:, None, :, None, None]).sum(0) + total.bias[:, None, None]


@pytest.mark.parametrize(("count", "channels"), [(3, 32), (2, 20)])
def test_pointwise_of_a_sum(count: int, channels: int) -> None:
    (x, stack, total), conv = made_stack(count, channels), made_conv(channels, 10, 1, after=True)
    out = Maps.empty(2, 6, 5, 10, x)
    first = Maps(stack[0], 2, 6, 5, channels)
    ops.pointwise(first, Filters.of(conv, CPU, x.dtype), out, ScaleShift.of(total, CPU), stack)
    assert_close(out.nchw(), convolved(F.relu(summed(x, total)), conv))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "outputs", "size"), [(128, 32, (9, 11)), (20, 12, (13, 14)), (24, 70, (1, 3)), (16, 16, (2, 1))]
)
def test_conv3x3(channels: int, outputs: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    x, conv = torch.randn(3, channels, *size).to(dtype), made_conv(channels, outputs, 3, after=outputs > 32)
    out = Maps.empty(3, *size, outputs, x)
    ops.conv3x3(maps_of(x), Filters.of(conv, CPU, dtype), out)
    assert_close(out.nchw(), convolved(x, conv), dtype)


@pytest.mark.parametrize("channels", [16, 28])
def test_conv3x3_of_a_norm_pads_with_zeros_after_it(channels: int) -> None:
    x, norm, conv = torch.randn(3, channels, 8, 7), made_norm(channels), made_conv(channels, 12, 3)
    out = Maps.empty(3, 8, 7, 12, x)
    ops.conv3x3(maps_of(x), Filters.of(conv, CPU, x.dtype), out, ScaleShift.of(norm, CPU))
    assert_close(out.nchw(), convolved(normed(x, norm), conv))


@pytest.mark.parametrize(("channels", "size"), [(32, (9, 12)), (24, (1, 5))])
def test_conv3x3_of_stride_2(channels: int, size: tuple[int, int]) -> None:
    x, conv = torch.randn(3, channels, *size), made_conv(channels, 40, 3, stride=2)
    expected = convolved(x, conv)
    out = Maps.empty(3, *expected.shape[2:], 40, x)
    ops.conv3x3_stride2(maps_of(x), Filters.of(conv, CPU, x.dtype), out)
    assert_close(out.nchw(), expected)


@pytest.mark.parametrize("size", [(12, 10), (7, 9), (1, 1)])
def test_max_pool(size: tuple[int, int]) -> None:
    x = torch.randn(2, 24, *size)
    expected = F.max_pool2d(x, 3, 2, 1)
    out = Maps.empty(2, *expected.shape[2:], 24, x)
    ops.max_pool(maps_of(x), out)
    assert torch.equal(out.nchw(), expected)


@pytest.mark.parametrize("mean", ["norm", "raw", None])
@pytest.mark.parametrize(("channels", "size"), [(40, (17, 18)), (32, (2, 3)), (36, (5, 4))])
def test_transition_gives_the_mean_of_all_pixels(channels: int, size: tuple[int, int], mean: str | None) -> None:
    x, norm, conv = torch.randn(2, channels, *size), made_norm(channels), made_conv(channels, 18, 1)
    out = Maps.empty(2, size[0] // 2, size[1] // 2, 18, x)
    found = ops.transition(maps_of(x), ScaleShift.of(norm, CPU), Filters.of(conv, CPU, x.dtype), out, mean)
    assert_close(out.nchw(), F.avg_pool2d(convolved(normed(x, norm), conv), 2))
    if mean is None:
        assert found is None
    else:
        assert found is not None
        assert_close(found, (x if mean == "raw" else normed(x, norm)).mean((2, 3)))


@pytest.mark.parametrize(("wants_mean", "wants_maps"), [(True, True), (True, False), (False, True)])
def test_combine_of_a_sum(wants_mean: bool, wants_maps: bool) -> None:
    x, stack, total = made_stack(3, 20)
    out = Maps.empty(2, 6, 5, 20, x) if wants_maps else None
    found = ops.combine(Maps(stack[0], 2, 6, 5, 20), ScaleShift.of(total, CPU), False, out, wants_mean, stack)
    expected = summed(x, total)
    if out is not None:
        assert_close(out.nchw(), expected)
    assert (found is not None) == wants_mean
    if found is not None:
        assert_close(found, expected.mean((2, 3)))


def test_combine_of_a_norm_over_several_parts() -> None:
    x, norm = torch.randn(2, 72, 19, 20), made_norm(72)
    found = ops.combine(maps_of(x), ScaleShift.of(norm, CPU), True, None, True)
    assert found is not None
    assert_close(found, normed(x, norm).mean((2, 3)))


@pytest.mark.parametrize("kernel", _TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_candidates_differ_in_nothing_that_sums_depend_on(kernel: str, dtype: torch.dtype) -> None:
    for outputs in (12, 48, 128, 512):
        tried = _candidates(kernel, outputs, dtype)
        assert len({blocks.k for blocks in tried}) == 1
        assert all(blocks.m >= 64 and blocks.warps % 4 == 0 for blocks in tried)  # the same instruction multiplies
        assert len({blocks.m for blocks in tried}) == 1 or kernel != "transition"


@pytest.mark.parametrize("blocks", _candidates("conv3x3", 40, torch.bfloat16), ids=str)
def test_conv3x3_in_every_size_of_tile(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_TILES, "conv3x3", [[(blocks.m, blocks.n, blocks.k, blocks.warps, blocks.stages)]] * 2)
    test_conv3x3(80, 40, (11, 13), torch.float32)


# the engine


def exact_maps(model: nn.Module, tap: str, x: torch.Tensor) -> list[torch.Tensor]:
    """Of the plain network in float64."""
    exact = copy.deepcopy(model).double()
    maps: list[torch.Tensor] = []
    for name in exact.block_taps[tap]:
        exact.get_submodule(name).register_forward_hook(lambda _, __, output: maps.append(output.clone()))
    with torch.no_grad():
        exact(x.double())
    return maps


def made(model: nn.Module, tap: str = "norm", dtype: torch.dtype = torch.float32, blocks: tuple[int, ...] | None = None):
    if blocks is None:
        blocks = tuple(range(len(model.block_taps[tap])))
    return engine.TritonEngine(fold(model), EngineSpec(blocks, tap, PRECISION[dtype], CPU))


def assert_outputs(found: list[BlockOutput], expected: list[torch.Tensor], dtype: torch.dtype, mean: bool, maps: bool) -> None:
    assert len(found) == len(expected)
    for output, exact in zip(found, expected, strict=True):
        assert (output.mean is not None) == mean
        assert (output.maps is not None) == maps
        if output.mean is not None:
            assert output.mean.dtype == torch.float32
            assert_close(output.mean, exact.mean((2, 3)), dtype)
        if output.maps is not None:
            assert output.maps.dtype == dtype
            assert_close(output.maps, exact, dtype)


def agree(
    model: nn.Module, shape: tuple[int, ...], tap: str = "norm", dtype: torch.dtype = torch.float32, maps: bool = True
) -> None:
    """Means alone, and where ``maps`` means with maps, which come from different kernels."""
    model, x = perturbed(model), torch.randn(shape)
    expected, run = exact_maps(model, tap, x), made(model, tap, dtype)
    assert_outputs(run(x, True, False), expected, dtype, True, False)
    if maps:
        assert_outputs(run(x, True, True), expected, dtype, True, True)


SMALL = {
    "bottleneck": lambda: DenseNet(32, (2, 1, 2), num_classes=2),
    "plain": lambda: DenseNet(12, (2, 3), 16, bottleneck=False, compression=1.0, stem_type="cifar", num_classes=2),
    "bc12": lambda: DenseNet(12, (2, 2), stem_type="cifar", num_classes=2),
    "deluge": lambda: DelugeNet((8, 24), (2, 2), "imagenet", num_classes=2),
    "cifar_deluge": lambda: DelugeNet((12, 16), (3, 2), "cifar", num_classes=2),
}


QUICK = {("bottleneck", "norm"), ("plain", "norm"), ("deluge", "norm"), ("cifar_deluge", "raw"), ("bc12", "bf16")}
WAYS = {"norm": ("norm", torch.float32), "raw": ("raw", torch.float32), "bf16": ("norm", torch.bfloat16)}


@pytest.mark.parametrize(
    ("network", "tap", "dtype"),
    [
        pytest.param(network, *way, id=f"{network}-{name}", marks=[] if (network, name) in QUICK else [pytest.mark.slow])
        for network in SMALL
        for name, way in WAYS.items()
    ],
)
def test_features_are_the_plain_networks(network: str, tap: str, dtype: torch.dtype) -> None:
    model = SMALL[network]()
    agree(
        model,
        (2, 3, 41, 53) if model.feature_info[1]["reduction"] > 1 else (3, 3, 9, 14),
        tap,
        dtype,
        maps=dtype == torch.float32,
    )


def with_fewer_layers(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    cls, structure = VARIANTS[name]
    return cls, structure | dict(block_config=(2,) * len(structure["block_config"]), num_classes=2)


DIFFERENT = {str(with_fewer_layers(name)): name for name in VARIANTS}  # but for their depth


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT.values())
def test_every_variant_with_fewer_layers(name: str) -> None:
    cls, structure = with_fewer_layers(name)
    agree(cls(**structure), (1, 3, 47, 33) if structure.get("stem_type") != "cifar" else (1, 3, 11, 9), maps=False)


@pytest.mark.slow
def test_a_whole_variant() -> None:
    cls, structure = VARIANTS["densefeat_densenet121"]
    agree(cls(**structure, num_classes=2), (1, 3, 64, 64), maps=False)


@pytest.mark.parametrize(
    ("blocks", "tap"), [((0,), "norm"), pytest.param((0, 2), "raw", marks=pytest.mark.slow), ((1, 2), "norm")]
)
def test_some_blocks(blocks: tuple[int, ...], tap: str) -> None:
    model, x = perturbed(SMALL["bottleneck"]()), torch.randn(1, 3, 33, 34)
    exact = exact_maps(model, tap, x)
    run = made(model, tap, blocks=blocks)
    assert len(run.stages.blocks) == blocks[-1] + 1
    assert_outputs(run(x, True, False), [exact[i] for i in blocks], torch.float32, True, False)
    assert_outputs(run(x, False, True), [exact[i] for i in blocks], torch.float32, False, True)


@pytest.mark.parametrize("network", ["bc12", pytest.param("cifar_deluge", marks=pytest.mark.slow)])
def test_a_row_does_not_depend_on_its_batch(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = perturbed(SMALL[network]()), torch.randn(3, 3, 9, 6)
    run = made(model)
    together = run(x, True, True)
    monkeypatch.setattr(engine, "_ELEMENTS_AT_ONCE", 1)  # image by image
    for whole, alone in zip(together, run(x, True, True), strict=True):
        for one, other in ((whole.mean, alone.mean), (whole.maps, alone.maps)):
            assert one is not None and other is not None  # noqa: PT018
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_nan_stays_in_its_row() -> None:
    model, x = perturbed(SMALL["bc12"]()), torch.randn(3, 3, 8, 9)
    clean = made(model)(x, True, False)
    x[1, 0, 4, 5] = float("nan")
    for output, before in zip(made(model)(x, True, False), clean, strict=True):
        assert output.mean is not None and before.mean is not None  # noqa: PT018
        assert output.mean[1].isnan().any()
        assert torch.equal(output.mean[[0, 2]], before.mean[[0, 2]])


def test_results_are_the_callers() -> None:
    model, (x, y) = perturbed(SMALL["cifar_deluge"]()), torch.randn(2, 1, 3, 6, 8)
    run = made(model, "raw")
    first = run(x, True, True)
    kept = [(output.mean.clone(), output.maps.clone()) for output in first]
    run(y, True, True)
    assert all(
        torch.equal(output.mean, mean) and torch.equal(output.maps, maps)
        for output, (mean, maps) in zip(first, kept, strict=True)
    )


def test_images_of_any_layout_and_type() -> None:
    model, x = perturbed(SMALL["bc12"]()), torch.randn(2, 3, 7, 6)
    run = made(model)
    expected = run(x, True, False)[-1].mean
    for same in (x.to(memory_format=torch.channels_last), x.double(), torch.stack([x, x], -1)[..., 0]):
        assert torch.equal(run(same, True, False)[-1].mean, expected)


def test_images_that_do_not_fit() -> None:
    run = made(SMALL["bottleneck"]().eval())
    with pytest.raises(UsageError, match=r"\(1, 1, 64, 64\): this network takes \(N, 3, H, W\)"):
        run(torch.zeros(1, 1, 64, 64), True, False)
    with pytest.raises(UsageError, match="12×64 pixels are too small for block 3"):
        run(torch.zeros(1, 3, 12, 64), True, False)
