"""OpenVinoEngine alone; test_cpu_engines.py tests what it shares with BufferEngine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from densefeat.features.engines.engine import BlockOutput
from densefeat.features.engines.openvino.build import build_openvino_engine
from densefeat.features.engines.openvino.engine import _MAX_SIZES, OpenVinoEngine, find_openvino_obstacle
from densefeat.nets.zoo import VARIANTS
from support.engines import assert_close_outputs, compute_reference, deluge, dense, make_images, make_spec
from support.helpers import randomize_statistics, relative_difference


def engine_for(
    model: nn.Module, blocks: tuple[int, ...] = (0, 1), tap: str = "norm", precision: str = "fp32"
) -> OpenVinoEngine:
    return build_openvino_engine(model, make_spec(blocks, tap, precision))


def check_network(model: nn.Module, x: torch.Tensor, tap: str, blocks: tuple[int, ...]) -> None:
    assert_close_outputs(engine_for(model, blocks, tap)(x, True, True), compute_reference(model, x, blocks, tap))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_whole(name: str) -> None:
    """Compare with float64: a hundred untrained layers amplify any rounding, also that of the plain network."""
    cls, structure = VARIANTS[name]
    blocks = tuple(range(len(structure["block_config"])))
    torch.manual_seed(0)
    model, x = randomize_statistics(cls(**structure)).eval(), make_images(1, 64, 64)
    outputs, plain, exact = (
        engine_for(model, blocks)(x, True, True),
        compute_reference(model, x, blocks),
        compute_reference(model.double(), x, blocks),
    )
    for a, b, c in zip(outputs, plain, exact, strict=True):
        for values, own, truth in ((a.mean, b.mean, c.mean), (a.maps, b.maps, c.maps)):
            assert relative_difference(values, truth) <= max(1e-5, 2 * relative_difference(own, truth))


def test_more_sizes_than_have_graphs() -> None:
    model = dense()
    engine = engine_for(model)
    for i in range(_MAX_SIZES + 3):
        x = make_images(3, 40 + 3 * i, 48)
        assert_close_outputs(engine(x, True, True), compute_reference(model, x))
    assert len(engine.queues) <= _MAX_SIZES + 1


def test_nothing_after_the_last_block_is_in_the_graph() -> None:
    last = {blocks: engine_for(dense(), blocks).graph.make_model(True, False, (1, 3, 64, 64)) for blocks in ((0,), (0, 1, 2))}
    convolutions = [sum(op.get_type_name() == "Convolution" for op in model.get_ops()) for model in last.values()]
    assert convolutions == [1 + 2 * 3, 1 + 2 * 8 + 2]


def test_images_of_other_channels() -> None:
    model = dense(in_chans=5)
    x = torch.randn(2, 5, 48, 48, generator=torch.Generator().manual_seed(0))
    assert_close_outputs(engine_for(model)(x, True, True), compute_reference(model, x))


def test_the_engine_copies_the_weights() -> None:
    model, x = dense(), make_images(2)
    engine = engine_for(model)
    before = engine(x, True, False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    engine.queues.clear()  # compiles again, from the copy
    assert torch.equal(engine(x, True, False)[1].mean, before[1].mean)


@pytest.mark.parametrize("make", [dense, deluge])
def test_bf16(make: type) -> None:
    model, x = make(), make_images(4, 96, 96)
    outputs = engine_for(model, precision="bf16")(x, True, True)
    for a, b in zip(outputs, compute_reference(model, x), strict=True):
        for values, reference in ((a.mean, b.mean), (a.maps, b.maps)):
            assert values.dtype == torch.float32
            assert torch.cosine_similarity(values.flatten(1), reference.flatten(1)).min() >= 0.9995


def test_fp32_is_closer_than_bf16_could_be() -> None:
    model, x = dense(block_config=(6, 6)), make_images(2, 96, 96)
    outputs, exact = engine_for(model)(x, True, False), compute_reference(model.double(), x)
    assert all(relative_difference(a.mean, b.mean) < 2e-6 for a, b in zip(outputs, exact, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_number_of_threads(threads: int) -> None:
    model, x, before = dense(), make_images(5), torch.get_num_threads()
    expected = compute_reference(model, x)
    torch.set_num_threads(threads)
    try:
        engine = engine_for(model)
    finally:
        torch.set_num_threads(before)
    for number in (1, 2, 5):
        assert_close_outputs(
            engine(x[:number], True, True), [BlockOutput(output.mean[:number], output.maps[:number]) for output in expected]
        )


def test_images_that_are_too_small() -> None:
    model, good = dense(), make_images(2)
    engine = engine_for(model)
    expected = compute_reference(model, good)
    for sizes in (set(), {(i, i) for i in range(_MAX_SIZES)}):  # with a graph for their size, and with one for any size
        engine.sizes = sizes
        with pytest.raises(RuntimeError):
            engine(make_images(2, 2, 48), True, True)
        assert_close_outputs(engine(good, True, True), expected)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow() -> None:
    engine = engine_for(dense())

    def calls(times: int) -> None:
        for i in range(times):
            engine(make_images(1 + i % 9), True, bool(i % 2))

    calls(40)
    before = resident_bytes()
    calls(100)
    assert resident_bytes() - before < 16 * 2**20  # the maps of 100 calls are 400 MB


FRESH_PROCESS = """
import faulthandler, gc, os, signal, sys, threading
faulthandler.enable()
import torch
from densefeat import FeatureExtractor
from densefeat.features import find_openvino_obstacle

assert find_openvino_obstacle() is None
assert "openvino" not in sys.modules

def embed():
    extractor = FeatureExtractor("densefeat_densenet_bc100_k12", device="cpu", backend="openvino")
    extractor(torch.zeros(1, 3, 32, 32))
    return [extractor]

def drop(extractors):
    extractors.clear()
    gc.collect()

signals = []
signal.signal(signal.SIGUSR1, lambda *_: signals.append(1))
for _ in range(2):
    thread = threading.Thread(target=drop, args=[embed()])
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGUSR1)
assert signals == [1, 1]
"""


@pytest.mark.slow
def test_a_process_that_starts_openvino(tmp_path: Path) -> None:
    """openvino is imported late, and a signal after an engine ended in another thread is harmless.

    Signal handlers run on a stack that openvino replaces, and frees together with its core in the thread that does so.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD")} | {
        "HOME": str(tmp_path)
    }
    process = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert not (tmp_path / "intel").exists()  # where openvino's telemetry stores an id


def test_a_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_openvino_obstacle() is None
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    assert find_openvino_obstacle() == "openvino is not installed: pip install 'densefeat[openvino]'"
