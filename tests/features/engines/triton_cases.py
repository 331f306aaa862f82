"""The Triton engine in Triton's interpreter, on the CPU: ``test_triton.py`` runs this file in a process of its own.

Uninitialised memory is full of NaN here, so that any read of it shows in the results.
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
from densefeat.features.engines.folded import FoldedConv, FoldedNorm, FoldedSum, fold_network
from densefeat.features.engines.triton import engine, ops
from densefeat.features.engines.triton.kernels import INTERPRETED
from densefeat.features.engines.triton.ops import Filters, PixelRows, ScaleShift
from densefeat.features.engines.triton.tuning import _TILES, Tile, _candidate_tiles
from densefeat.nets.zoo import VARIANTS
from support.engines import perturb_norms
from support.helpers import relative_difference

# numpy warns of NaN: columns beyond a map's channels hold NaN, and are multiplied before they are replaced by zero
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@pytest.fixture(autouse=True)
def fill_new_memory_with_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    assert INTERPRETED.value
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


# kernels


def lay_out(x: torch.Tensor) -> PixelRows:
    """Copy ``(N, C, H, W)`` into rows, with NaN beyond the channels."""
    images, channels, height, width = x.shape
    maps = PixelRows.empty(images, height, width, channels, x)
    maps.rows[:, :channels] = x.permute(0, 2, 3, 1).flatten(0, 2)
    return maps


def make_norm(channels: int) -> FoldedNorm:
    return FoldedNorm(torch.randn(channels).double(), torch.randn(channels).double())


def apply_norm_relu(x: torch.Tensor, norm: FoldedNorm) -> torch.Tensor:
    return F.relu(x.double() * norm.scale[:, None, None] + norm.shift[:, None, None])


def make_conv(channels: int, outputs: int, kernel: int, stride: int = 1, after: bool = False) -> FoldedConv:
    """Make a random convolution, with bias and ReLU if ``after``."""
    weight = torch.randn(outputs, channels, kernel, kernel).double() / channels**0.5
    return FoldedConv(weight, torch.randn(outputs).double() if after else None, stride, kernel // 2, after)


def convolve(x: torch.Tensor, conv: FoldedConv) -> torch.Tensor:
    y = F.conv2d(x.double(), conv.weight, conv.bias, conv.stride, conv.padding)
    return F.relu(y) if conv.relu else y


def assert_close(values: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert values.shape == expected.shape
    assert relative_difference(values.float(), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "outputs", "after"), [(48, 16, True), (20, 12, False), (70, 140, True)])
def test_pointwise_of_a_norm(channels: int, outputs: int, after: bool, dtype: torch.dtype) -> None:
    x, norm, conv = torch.randn(3, channels, 7, 9).to(dtype), make_norm(channels), make_conv(channels, outputs, 1, after=after)
    out = PixelRows.empty(3, 7, 9, outputs, x)
    ops.pointwise(lay_out(x), Filters.from_conv(conv, CPU, dtype), out, ScaleShift.from_folded(norm, CPU))
    assert_close(out.nchw(), convolve(apply_norm_relu(x, norm), conv), dtype)


@pytest.mark.parametrize("channels", [32, 24])
def test_pointwise_of_a_map_itself(channels: int) -> None:
    x, conv = torch.randn(2, channels, 5, 6), make_conv(channels, 18, 1)
    out = PixelRows.empty(2, 5, 6, 18, x)
    ops.pointwise(lay_out(x), Filters.from_conv(conv, CPU, x.dtype), out)
    assert_close(out.nchw(), convolve(x, conv))


def make_stack(count: int, channels: int) -> tuple[torch.Tensor, torch.Tensor, FoldedSum]:
    """Make maps ``(n, N, C, H, W)``, the same as a stack of rows, and a weighted sum over them."""
    x = torch.randn(count, 2, channels, 6, 5)
    total = FoldedSum(torch.randn(count, channels).double(), torch.randn(channels).double())
    return x, torch.stack([lay_out(maps).rows for maps in x]), total


def apply_sum(x: torch.Tensor, total: FoldedSum) -> torch.Tensor:
    return (x.double() * total.weights[:, None, :, None, None]).sum(0) + total.bias[:, None, None]


@pytest.mark.parametrize(("count", "channels"), [(3, 32), (2, 20)])
def test_pointwise_of_a_sum(count: int, channels: int) -> None:
    (x, stack, total), conv = make_stack(count, channels), make_conv(channels, 10, 1, after=True)
    out = PixelRows.empty(2, 6, 5, 10, x)
    first = PixelRows(stack[0], 2, 6, 5, channels)
    ops.pointwise(first, Filters.from_conv(conv, CPU, x.dtype), out, ScaleShift.from_folded(total, CPU), stack)
    assert_close(out.nchw(), convolve(F.relu(apply_sum(x, total)), conv))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "outputs", "size"), [(128, 32, (9, 11)), (20, 12, (13, 14)), (24, 70, (1, 3)), (16, 16, (2, 1))]
)
def test_conv3x3(channels: int, outputs: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    x, conv = torch.randn(3, channels, *size).to(dtype), make_conv(channels, outputs, 3, after=outputs > 32)
    out = PixelRows.empty(3, *size, outputs, x)
    ops.conv3x3(lay_out(x), Filters.from_conv(conv, CPU, dtype), out)
    assert_close(out.nchw(), convolve(x, conv), dtype)


@pytest.mark.parametrize("channels", [16, 28])
def test_conv3x3_of_a_norm_pads_with_zeros_after_it(channels: int) -> None:
    x, norm, conv = torch.randn(3, channels, 8, 7), make_norm(channels), make_conv(channels, 12, 3)
    out = PixelRows.empty(3, 8, 7, 12, x)
    ops.conv3x3(lay_out(x), Filters.from_conv(conv, CPU, x.dtype), out, ScaleShift.from_folded(norm, CPU))
    assert_close(out.nchw(), convolve(apply_norm_relu(x, norm), conv))


@pytest.mark.parametrize(("channels", "size"), [(32, (9, 12)), (24, (1, 5))])
def test_conv3x3_of_stride_2(channels: int, size: tuple[int, int]) -> None:
    x, conv = torch.randn(3, channels, *size), make_conv(channels, 40, 3, stride=2)
    expected = convolve(x, conv)
    out = PixelRows.empty(3, *expected.shape[2:], 40, x)
    ops.conv3x3_stride2(lay_out(x), Filters.from_conv(conv, CPU, x.dtype), out)
    assert_close(out.nchw(), expected)


@pytest.mark.parametrize("size", [(12, 10), (7, 9), (1, 1)])
def test_max_pool(size: tuple[int, int]) -> None:
    x = torch.randn(2, 24, *size)
    expected = F.max_pool2d(x, 3, 2, 1)
    out = PixelRows.empty(2, *expected.shape[2:], 24, x)
    ops.max_pool(lay_out(x), out)
    assert torch.equal(out.nchw(), expected)


@pytest.mark.parametrize("mean", ["norm", "raw", None])
@pytest.mark.parametrize(("channels", "size"), [(40, (17, 18)), (32, (2, 3)), (36, (5, 4))])
def test_transition_gives_the_mean_of_all_pixels(channels: int, size: tuple[int, int], mean: str | None) -> None:
    x, norm, conv = torch.randn(2, channels, *size), make_norm(channels), make_conv(channels, 18, 1)
    out = PixelRows.empty(2, size[0] // 2, size[1] // 2, 18, x)
    means = ops.transition(lay_out(x), ScaleShift.from_folded(norm, CPU), Filters.from_conv(conv, CPU, x.dtype), out, mean)
    assert_close(out.nchw(), F.avg_pool2d(convolve(apply_norm_relu(x, norm), conv), 2))
    if mean is None:
        assert means is None
    else:
        assert means is not None
        assert_close(means, (x if mean == "raw" else apply_norm_relu(x, norm)).mean((2, 3)))


@pytest.mark.parametrize(("wants_mean", "wants_maps"), [(True, True), (True, False), (False, True)])
def test_combine_of_a_sum(wants_mean: bool, wants_maps: bool) -> None:
    x, stack, total = make_stack(3, 20)
    out = PixelRows.empty(2, 6, 5, 20, x) if wants_maps else None
    means = ops.combine(PixelRows(stack[0], 2, 6, 5, 20), ScaleShift.from_folded(total, CPU), False, out, wants_mean, stack)
    expected = apply_sum(x, total)
    if out is not None:
        assert_close(out.nchw(), expected)
    assert (means is not None) == wants_mean
    if means is not None:
        assert_close(means, expected.mean((2, 3)))


def test_combine_of_a_norm_over_several_parts() -> None:
    x, norm = torch.randn(2, 72, 19, 20), make_norm(72)
    means = ops.combine(lay_out(x), ScaleShift.from_folded(norm, CPU), True, None, True)
    assert means is not None
    assert_close(means, apply_norm_relu(x, norm).mean((2, 3)))


@pytest.mark.parametrize("kernel", _TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_candidate_tiles_do_not_change_sums(kernel: str, dtype: torch.dtype) -> None:
    for outputs in (12, 48, 128, 512):
        tiles = _candidate_tiles(kernel, outputs, dtype)
        assert len({tile.k for tile in tiles}) == 1
        assert all(tile.m >= 64 and tile.warps % 4 == 0 for tile in tiles)  # they multiply with the same instruction
        assert len({tile.m for tile in tiles}) == 1 or kernel != "transition"


FIRST_TILE, *OTHER_TILES = _candidate_tiles("conv3x3", 40, torch.bfloat16)


@pytest.mark.parametrize("tile", [FIRST_TILE, *(pytest.param(tile, marks=pytest.mark.slow) for tile in OTHER_TILES)], ids=str)
def test_conv3x3_in_every_size_of_tile(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_TILES, "conv3x3", [[(tile.m, tile.n, tile.k, tile.warps, tile.stages)]] * 2)
    test_conv3x3(80, 40, (11, 13), torch.float32)


# the engine


def compute_exact_maps(model: nn.Module, tap: str, x: torch.Tensor) -> list[torch.Tensor]:
    """Compute a tap's maps with the plain network in float64."""
    exact = copy.deepcopy(model).double()
    maps: list[torch.Tensor] = []
    for name in exact.block_taps[tap]:
        exact.get_submodule(name).register_forward_hook(lambda _, __, output: maps.append(output.clone()))
    with torch.no_grad():
        exact(x.double())
    return maps


def make_engine(model: nn.Module, tap: str = "norm", dtype: torch.dtype = torch.float32, blocks: tuple[int, ...] | None = None):
    if blocks is None:
        blocks = tuple(range(len(model.block_taps[tap])))
    return engine.TritonEngine(fold_network(model), EngineSpec(blocks, tap, PRECISION[dtype], CPU))


def assert_outputs(
    outputs: list[BlockOutput], expected: list[torch.Tensor], dtype: torch.dtype, mean: bool, maps: bool
) -> None:
    assert len(outputs) == len(expected)
    for output, exact in zip(outputs, expected, strict=True):
        assert (output.mean is not None) == mean
        assert (output.maps is not None) == maps
        if output.mean is not None:
            assert output.mean.dtype == torch.float32
            assert_close(output.mean, exact.mean((2, 3)), dtype)
        if output.maps is not None:
            assert output.maps.dtype == dtype
            assert_close(output.maps, exact, dtype)


def assert_accurate(
    model: nn.Module, shape: tuple[int, ...], tap: str = "norm", dtype: torch.dtype = torch.float32, maps: bool = True
) -> None:
    """Check means alone, and if ``maps`` also means with maps, which come from other kernels."""
    model, x = perturb_norms(model), torch.randn(shape)
    expected, run = compute_exact_maps(model, tap, x), make_engine(model, tap, dtype)
    assert_outputs(run(x, True, False), expected, dtype, True, False)
    if maps:
        assert_outputs(run(x, True, True), expected, dtype, True, True)


SMALL = {
    "bottleneck": lambda: DenseNet(16, (2, 1, 2), 32, num_classes=2),
    "plain": lambda: DenseNet(12, (1, 2), 16, bottleneck=False, compression=1.0, stem_type="cifar", num_classes=2),
    "bc12": lambda: DenseNet(12, (2, 2), stem_type="cifar", num_classes=2),
    "deluge": lambda: DelugeNet((8, 24), (2, 2), "imagenet", num_classes=2),
    "cifar_deluge": lambda: DelugeNet((12, 16), (3, 2), "cifar", num_classes=2),
}


QUICK = {("bottleneck", "norm"), ("plain", "norm"), ("deluge", "norm"), ("cifar_deluge", "raw"), ("bc12", "bf16")}
OPTIONS = {"norm": ("norm", torch.float32), "raw": ("raw", torch.float32), "bf16": ("norm", torch.bfloat16)}


@pytest.mark.parametrize(
    ("network", "tap", "dtype"),
    [
        pytest.param(network, *options, id=f"{network}-{name}", marks=[] if (network, name) in QUICK else [pytest.mark.slow])
        for network in SMALL
        for name, options in OPTIONS.items()
    ],
)
def test_features_equal_those_of_the_plain_network(network: str, tap: str, dtype: torch.dtype) -> None:
    model = SMALL[network]()
    shape = (2, 3, 33, 37) if model.feature_info[1]["reduction"] > 1 else (2, 3, 7, 10)
    assert_accurate(model, shape, tap, dtype, maps=dtype == torch.float32)


def reduce_layers(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    cls, structure = VARIANTS[name]
    return cls, structure | dict(block_config=(2,) * len(structure["block_config"]), num_classes=2)


DIFFERENT = {str(reduce_layers(name)): name for name in VARIANTS}  # in more than their depth


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT.values())
def test_every_variant_reduce_layers(name: str) -> None:
    cls, structure = reduce_layers(name)
    assert_accurate(cls(**structure), (1, 3, 47, 33) if structure.get("stem_type") != "cifar" else (1, 3, 11, 9), maps=False)


@pytest.mark.slow
def test_a_whole_variant() -> None:
    cls, structure = VARIANTS["densefeat_densenet121"]
    assert_accurate(cls(**structure, num_classes=2), (1, 3, 64, 64), maps=False)


@pytest.mark.parametrize(
    ("blocks", "tap"),
    [
        ((1,), "norm"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (((0,), "norm"), ((0, 2), "raw"), ((1, 2), "norm"))),
    ],
)
def test_some_blocks(blocks: tuple[int, ...], tap: str) -> None:
    model, x = perturb_norms(SMALL["bottleneck"]()), torch.randn(1, 3, 33, 34)
    exact = compute_exact_maps(model, tap, x)
    run = make_engine(model, tap, blocks=blocks)
    assert len(run.network.blocks) == blocks[-1] + 1
    assert_outputs(run(x, True, False), [exact[i] for i in blocks], torch.float32, True, False)
    assert_outputs(run(x, False, True), [exact[i] for i in blocks], torch.float32, False, True)


@pytest.mark.parametrize("network", ["bc12", pytest.param("cifar_deluge", marks=pytest.mark.slow)])
def test_a_row_does_not_depend_on_its_batch(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = perturb_norms(SMALL[network]()), torch.randn(2, 3, 9, 6)
    run = make_engine(model)
    together = run(x, True, True)
    monkeypatch.setattr(engine, "_MAX_ELEMENTS", 1)  # image by image
    for whole, alone in zip(together, run(x, True, True), strict=True):
        for expected, values in ((whole.mean, alone.mean), (whole.maps, alone.maps)):
            assert expected is not None and values is not None  # noqa: PT018
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_nan_stays_in_its_row() -> None:
    model, x = perturb_norms(SMALL["bc12"]()), torch.randn(3, 3, 8, 9)
    clean = make_engine(model)(x, True, False)
    x[1, 0, 4, 5] = float("nan")
    for output, before in zip(make_engine(model)(x, True, False), clean, strict=True):
        assert output.mean is not None and before.mean is not None  # noqa: PT018
        assert output.mean[1].isnan().any()
        assert torch.equal(output.mean[[0, 2]], before.mean[[0, 2]])


def test_later_calls_do_not_change_results() -> None:
    model, (x, y) = perturb_norms(SMALL["cifar_deluge"]()), torch.randn(2, 1, 3, 6, 8)
    run = make_engine(model, "raw")
    first = run(x, True, True)
    copies = [(output.mean.clone(), output.maps.clone()) for output in first]
    run(y, True, True)
    assert all(
        torch.equal(output.mean, mean) and torch.equal(output.maps, maps)
        for output, (mean, maps) in zip(first, copies, strict=True)
    )


def test_images_of_any_layout_and_type() -> None:
    stem, x = make_engine(SMALL["bc12"]()).network.stem, torch.randn(2, 3, 7, 6)
    expected = F.pad(x, [1] * 4)
    for images in (x, x.to(memory_format=torch.channels_last), x.double(), torch.stack([x, x], -1)[..., 0]):
        assert torch.equal(stem.allocate_input(2, 7, 6).fill(images).pixels, expected)


def test_images_that_are_refused() -> None:
    run = make_engine(SMALL["bottleneck"]().eval())
    with pytest.raises(UsageError, match=r"\(1, 1, 64, 64\): this network takes \(N, 3, H, W\)"):
        run(torch.zeros(1, 1, 64, 64), True, False)
    with pytest.raises(UsageError, match="12×64 pixels are too small for block 3"):
        run(torch.zeros(1, 3, 12, 64), True, False)
