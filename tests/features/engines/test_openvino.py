"""OpenVinoEngine: what is its own; the rest is in test_cpu_engines.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from densefeat.features.engines.engine import BlockOutput
from densefeat.features.engines.folded import fold
from densefeat.features.engines.openvino.engine import _SIZES, OpenVinoEngine, openvino_obstacle
from densefeat.nets.zoo import VARIANTS
from support.engines import check_equal, deluge, dense, images, plain, wanted
from support.helpers import randomize_statistics, relative_difference


def engine_for(
    model: nn.Module, blocks: tuple[int, ...] = (0, 1), tap: str = "norm", precision: str = "fp32"
) -> OpenVinoEngine:
    return OpenVinoEngine(fold(model), wanted(blocks, tap, precision))


def check_network(model: nn.Module, x: torch.Tensor, tap: str, blocks: tuple[int, ...]) -> None:
    check_equal(engine_for(model, blocks, tap)(x, True, True), plain(model, x, blocks, tap))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_whole(name: str) -> None:
    """A hundred untrained layers amplify any rounding, the plain network's own too: both are measured from float64."""
    cls, structure = VARIANTS[name]
    blocks = tuple(range(len(structure["block_config"])))
    torch.manual_seed(0)
    model, x = randomize_statistics(cls(**structure)).eval(), images(1, 64, 64)
    found, own, exact = engine_for(model, blocks)(x, True, True), plain(model, x, blocks), plain(model.double(), x, blocks)
    for one, other, truth in zip(found, own, exact, strict=True):
        for a, b, c in ((one.mean, other.mean, truth.mean), (one.maps, other.maps, truth.maps)):
            assert relative_difference(a, c) <= max(1e-5, 2 * relative_difference(b, c))


def test_more_sizes_than_are_compiled_for() -> None:
    model = dense()
    engine = engine_for(model)
    for i in range(_SIZES + 3):
        x = images(3, 40 + 3 * i, 48)
        check_equal(engine(x, True, True), plain(model, x))
    assert len(engine.queues) <= _SIZES + 1


def test_nothing_after_the_last_block_is_in_the_graph() -> None:
    last = {blocks: engine_for(dense(), blocks).graph.model(True, False, (1, 3, 64, 64)) for blocks in ((0,), (0, 1, 2))}
    convolutions = [sum(op.get_type_name() == "Convolution" for op in model.get_ops()) for model in last.values()]
    assert convolutions == [1 + 2 * 3, 1 + 2 * 8 + 2]


def test_images_of_other_channels() -> None:
    model = dense(in_chans=5)
    x = torch.randn(2, 5, 48, 48, generator=torch.Generator().manual_seed(0))
    check_equal(engine_for(model)(x, True, True), plain(model, x))


def test_weights_of_the_model_are_not_shared() -> None:
    model, x = dense(), images(2)
    engine = engine_for(model)
    before = engine(x, True, False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    engine.queues.clear()  # compiled again from its own copy
    assert torch.equal(engine(x, True, False)[1].mean, before[1].mean)


@pytest.mark.parametrize("make", [dense, deluge])
def test_bf16(make: type) -> None:
    model, x = make(), images(4, 96, 96)
    found = engine_for(model, precision="bf16")(x, True, True)
    for one, other in zip(found, plain(model, x), strict=True):
        for a, b in ((one.mean, other.mean), (one.maps, other.maps)):
            assert a.dtype == torch.float32
            assert torch.cosine_similarity(a.flatten(1), b.flatten(1)).min() >= 0.9995


def test_fp32_is_closer_than_bf16_could_be() -> None:
    model, x = dense(block_config=(6, 6)), images(2, 96, 96)
    found, exact = engine_for(model)(x, True, False), plain(model.double(), x)
    assert all(relative_difference(a.mean, b.mean) < 2e-6 for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_number_of_threads(threads: int) -> None:
    model, x, before = dense(), images(5), torch.get_num_threads()
    expected = plain(model, x)
    torch.set_num_threads(threads)
    try:
        engine = engine_for(model)
    finally:
        torch.set_num_threads(before)
    for number in (1, 2, 5):
        check_equal(engine(x[:number], True, True), [BlockOutput(each.mean[:number], each.maps[:number]) for each in expected])


def test_images_that_are_too_small() -> None:
    model, good = dense(), images(2)
    engine = engine_for(model)
    expected = plain(model, good)
    for known in (set(), {(i, i) for i in range(_SIZES)}):  # compiled for their size, and for any
        engine.sizes = known
        with pytest.raises(RuntimeError):
            engine(images(2, 2, 48), True, True)
        check_equal(engine(good, True, True), expected)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow() -> None:
    engine = engine_for(dense())

    def calls(times: int) -> None:
        for i in range(times):
            engine(images(1 + i % 9), True, bool(i % 2))

    calls(40)
    before = resident_bytes()
    calls(300)
    assert resident_bytes() - before < 16 * 2**20  # 300 calls' maps are 1.2 GB


def run_apart(code: str, home: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD")} | {"HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout


def test_openvino_is_imported_when_an_engine_is_made_and_without_its_telemetry(tmp_path: Path) -> None:
    code = """
import sys
from densefeat.features.engines.openvino import engine as openvino
print(openvino.missing(), "openvino" in sys.modules)
openvino.load()
print("openvino" in sys.modules, any(name.split(".")[0] == "openvino_telemetry" for name in sys.modules))
"""
    assert run_apart(code, tmp_path).split() == ["None", "False", "True", "False"]
    assert not (tmp_path / "intel").exists()  # where its telemetry keeps an id


def test_a_signal_after_an_engine_ended_in_another_thread() -> None:
    """Python's handlers run on a stack that openvino sets up, and takes down, where a process has such a stack already."""
    script = """
import faulthandler, gc, os, signal, threading
faulthandler.enable()
import timm, torch, densefeat

def embed():
    model = timm.create_model("densefeat_densenet_bc100_k12")
    extractor = densefeat.FeatureExtractor(model, device="cpu", backend="openvino")
    extractor(torch.zeros(1, 3, 32, 32))
    return [extractor]

def drop(held):
    held.clear()
    gc.collect()

heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
for _ in range(2):
    thread = threading.Thread(target=drop, args=[embed()])
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGUSR1)
assert heard == [1, 1]
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_missing_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert openvino_obstacle() is None
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    assert openvino_obstacle() == "openvino is not installed: pip install 'densefeat[openvino]'"
