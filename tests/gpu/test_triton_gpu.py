"""The compiled Triton engine: tests that need more than Triton's interpreter, which runs no GPU code."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from densefeat import DelugeNet, DenseNet
from densefeat.features.engines.engine import BlockOutput, EngineSpec
from densefeat.features.engines.folded import FoldedConv, FoldedNorm, fold_network
from densefeat.features.engines.triton.engine import _MAX_GRAPHS, CapturedGraph, TritonEngine, find_triton_obstacle
from densefeat.nets.zoo import VARIANTS
from support.engines import perturb_norms
from support.helpers import relative_difference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE = torch.device("cuda", 0)
PRECISIONS = ("fp32", "bf16")


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    cls, structure = VARIANTS[name]
    return perturb_norms(cls(**structure, num_classes=2))


def make_images(model: nn.Module, count: int, seed: int = 0) -> torch.Tensor:
    """Make images of odd sizes, on the GPU."""
    size = (73, 101) if model.feature_info[1]["reduction"] > 1 else (31, 26)
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def collect_maps(model: nn.Module, tap: str, x: torch.Tensor) -> list[torch.Tensor]:
    """Compute a tap's maps with the plain network."""
    maps: list[torch.Tensor] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output: maps.append(output.clone()))
        for name in model.block_taps[tap]
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return maps


def compute_exact_maps(model: nn.Module, tap: str, x: torch.Tensor) -> list[torch.Tensor]:
    return collect_maps(copy.deepcopy(model).double(), tap, x.cpu().double())


def compute_autocast_maps(model: nn.Module, tap: str, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.autocast("cuda", torch.bfloat16):
        return collect_maps(copy.deepcopy(model).to(DEVICE), tap, x)


def make_engine(model: nn.Module, precision: str, tap: str = "norm") -> TritonEngine:
    return TritonEngine(fold_network(model), EngineSpec(tuple(range(len(model.block_taps[tap]))), tap, precision, DEVICE))


def assert_same(outputs: list[BlockOutput], expected: list[BlockOutput]) -> None:
    """Compare bit for bit."""
    for a, b in zip(outputs, expected, strict=True):
        for values, reference in ((a.mean, b.mean), (a.maps, b.maps)):
            assert (values is None) == (reference is None)
            assert values is None or torch.equal(values, reference)


def assert_accurate(model: nn.Module, outputs: list[BlockOutput], tap: str, precision: str, x: torch.Tensor) -> None:
    """Allow 1e-5 in fp32, and in bf16 1e-2, or the error of the plain network in bf16 where that is larger, as in deep networks."""
    plain = compute_autocast_maps(model, tap, x) if precision == "bf16" else None
    for i, (output, exact) in enumerate(zip(outputs, compute_exact_maps(model, tap, x), strict=True)):
        for pooled, value in ((True, output.mean), (False, output.maps)):
            if value is None:
                continue
            tolerance = 1e-5
            reference = exact.mean((2, 3)) if pooled else exact
            if plain is not None:
                own = plain[i].float().mean((2, 3)) if pooled else plain[i].float()
                tolerance = max(1e-2, relative_difference(own.cpu(), reference))
            assert relative_difference(value.float().cpu(), reference) < tolerance, f"block {i + 1}, mean: {pooled}"


def test_the_engine_can_run_here() -> None:
    assert find_triton_obstacle(DEVICE) is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name: str, precision: str) -> None:
    model = make_model(name)
    x, run = make_images(model, 2), make_engine(model, precision)
    for mean, maps in ((True, False), (True, True)):
        assert_accurate(model, run(x, mean, maps), "norm", precision, x)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["densefeat_densenet121", "densefeat_densenet40_k12", "densefeat_delugenet92"])
def test_raw_blocks(name: str, precision: str) -> None:
    model = make_model(name)
    x, run = make_images(model, 3), make_engine(model, precision, "raw")
    for mean, maps in ((True, False), (False, True)):
        assert_accurate(model, run(x, mean, maps), "raw", precision, x)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["densefeat_densenet_bc100_k12", "densefeat_densenet121", "densefeat_delugenet146"])
def test_rows_do_not_depend_on_their_batch(name: str, precision: str) -> None:
    model = make_model(name)
    x, run = make_images(model, 37), make_engine(model, precision)
    whole = run(x, True, False)
    assert_accurate(model, run(x[:8], True, False), "norm", precision, x[:8])
    for count in (1, 8, 37):
        part = [replace(output, mean=output.mean[:count]) for output in whole]
        assert_same(run(x[:count], True, False), part)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_candidate_tiles_give_the_same_bits(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from densefeat.features.engines.triton import ops, tuning

    all_tiles = dict(tuning._TILES)
    for name in ("densefeat_densenet_bc100_k12", "densefeat_delugenet92"):
        model, outputs = make_model(name), []
        for i in range(max(len(tiles) for pair in all_tiles.values() for tiles in pair)):
            only = {kernel: [tiles[i : i + 1] or tiles[-1:] for tiles in pair] for kernel, pair in all_tiles.items()}
            monkeypatch.setattr(tuning, "_TILES", only)
            monkeypatch.setattr(ops, "TUNER", tuning.Tuner())
            outputs.append(make_engine(model, precision)(make_images(model, 5), True, True))
        for other in outputs[1:]:
            assert_same(other, outputs[0])


@pytest.mark.parametrize("maps", [False, True])
def test_a_graph_returns_what_the_first_call_returned(maps: bool) -> None:
    model = make_model("densefeat_densenet_bc100_k12")
    run, inputs = make_engine(model, "bf16"), [make_images(model, 8, seed) for seed in range(3)]
    fresh = [make_engine(model, "bf16")(x, True, maps) for x in inputs]  # first calls, which capture nothing
    first = run(inputs[0], True, maps)
    assert_same(first, fresh[0])
    for _ in range(2):
        outputs = [run(x, True, maps) for x in inputs]  # a replay must not write into earlier outputs
        for a, b in zip(outputs, fresh, strict=True):
            assert_same(a, b)
    assert [type(graph) for graph in run.graphs.values()] == [CapturedGraph]
    assert_same(first, fresh[0])


@pytest.mark.parametrize("engines", [1, 2])
def test_threads_with_streams(engines: int) -> None:
    """Threads that share an engine share its graphs; with an engine each, they compile, tune and capture at the same time."""
    model = make_model("densefeat_densenet_bc100_k12")
    inputs = [make_images(model, count, seed) for seed, count in enumerate((8, 8, 8, 3, 8, 3))]
    fresh = [make_engine(model, "fp32")(x, True, True) for x in inputs]
    runs = [make_engine(model, "fp32") for _ in range(engines)]
    torch.cuda.synchronize()  # the inputs are from another stream

    def work(number: int) -> list[list[BlockOutput]]:
        with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
            outputs = [runs[number % engines](inputs[(i + 3 * number) % 6], True, True) for i in range(60)]
            torch.cuda.current_stream().synchronize()
        return outputs

    with ThreadPoolExecutor(2) as threads:
        for number, calls in enumerate(threads.map(work, range(2))):
            for i, outputs in enumerate(calls):
                assert_same(outputs, fresh[(i + 3 * number) % 6])


def test_sizes_come_and_go() -> None:
    model = perturb_norms(DenseNet(12, (3, 4), stem_type="cifar", num_classes=2))
    run = make_engine(model, "fp32")
    sizes = [(count, 3, height, 20) for count in (1, 8, 37) for height in (16, 23)]
    inputs = [torch.randn(size, generator=torch.Generator().manual_seed(1)).to(DEVICE) for size in sizes]
    fresh = [make_engine(model, "fp32")(x, True, True) for x in inputs]
    memory = []
    for i in range(4):
        for x, expected in zip(inputs, fresh, strict=True):
            for _ in range(2 + i % 2):
                assert_same(run(x, True, True), expected)
        assert len(run.graphs) <= _MAX_GRAPHS
        torch.cuda.synchronize()
        memory.append(torch.cuda.memory_allocated())
    assert memory[-1] <= memory[1] * 1.05


def test_a_batch_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perturb_norms(DelugeNet((16, 24), (3, 3), "cifar", num_classes=2))
    x = make_images(model, 37)
    whole = make_engine(model, "fp32")(x, True, True)
    monkeypatch.setattr("densefeat.features.engines.triton.engine._MAX_ELEMENTS", 1_000_000)
    run = make_engine(model, "fp32")
    for _ in range(3):
        assert_same(run(x, True, True), whole)


def test_maps_of_more_than_two_to_the_31_values() -> None:
    from densefeat.features.engines.triton import ops

    count, height, width, channels = 4200, 64, 64, 128
    assert count * height * width * channels > 2**31
    x = ops.PixelRows.empty(count, height, width, channels, torch.empty(0, dtype=torch.bfloat16, device=DEVICE))
    x.rows.zero_()
    x.rows[-height * width :].normal_(generator=torch.Generator(DEVICE).manual_seed(0))
    last = x.nchw()[-1:].float()
    norm = FoldedNorm(torch.ones(channels).double(), torch.full((channels,), -0.5).double())
    scale_shift = ops.ScaleShift.from_folded(norm, DEVICE)
    out = ops.PixelRows.empty(count, height, width, 16, x.rows)
    for kernel, run in ((1, ops.pointwise), (3, ops.conv3x3)):
        conv = FoldedConv(torch.randn(16, channels, kernel, kernel).double() / 30, None, 1, kernel // 2, False)
        run(x, ops.Filters.from_conv(conv, DEVICE, torch.bfloat16), out, scale_shift)
        expected = F.conv2d(F.relu(last.cpu().double() - 0.5), conv.weight, padding=kernel // 2)
        assert relative_difference(out.nchw()[-1:].float().cpu(), expected) < 1e-2
    mean = ops.combine(x, scale_shift, True, None, True)
    assert mean is not None
    assert relative_difference(mean[-1:].cpu(), F.relu(last - 0.5).mean((2, 3)).cpu()) < 1e-3
    assert not mean[:-1].any()
