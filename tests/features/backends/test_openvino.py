"""OpenVinoEngine: what the plain network computes, whatever the images, the batch and what is asked."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from densefeat.features.backends.engine import BlockOutput
from densefeat.features.backends.folded import fold
from densefeat.features.backends.openvino import SIZES, OpenVinoEngine, missing
from densefeat.nets.zoo import VARIANTS
from engines import check_equal, deluge, dense, images, perturbed, plain, wanted
from helpers import randomize_statistics, relative_difference


def engine_for(
    model: nn.Module, blocks: tuple[int, ...] = (0, 1), tap: str = "norm", precision: str = "fp32"
) -> OpenVinoEngine:
    return OpenVinoEngine(fold(model), wanted(blocks, tap, precision))


def check_network(model: nn.Module, x: torch.Tensor, tap: str, blocks: tuple[int, ...]) -> None:
    check_equal(engine_for(model, blocks, tap)(x, True, True), plain(model, x, blocks, tap))


@pytest.mark.parametrize("tap", ["norm", "raw"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_with_few_layers(name: str, tap: str) -> None:
    cls, structure = VARIANTS[name]
    count = len(structure["block_config"])
    torch.manual_seed(0)
    model = perturbed(cls(**(structure | dict(block_config=(3,) * count))))
    check_network(model, images(2, 64, 64) if count == 4 else images(2, 32, 32), tap, tuple(range(count)))


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


@pytest.mark.parametrize("make", [dense, deluge])
@pytest.mark.parametrize("tap", ["norm", "raw"])
def test_odd_sizes_and_numbers_of_images(make: type, tap: str) -> None:
    model = make()
    engine = engine_for(model, tap=tap)
    for number in (1, 2, 3, 7):
        x = images(number, 97, 131)
        check_equal(engine(x, True, True), plain(model, x, tap=tap))


@pytest.mark.parametrize(
    "model",
    [
        dense(bottleneck=False, compression=1.0, stem_type="cifar"),
        dense(compression=0.57, growth_rate=7),
        dense(block_config=(1, 1)),
        deluge(stem_type="cifar"),
        deluge(block_config=(2, 2)),
    ],
    ids=["plain", "channels-of-no-vector", "one-layer", "opening-layer", "two-outputs"],
)
def test_structures(model: nn.Module) -> None:
    check_network(model, images(2, 40, 33), "norm", (0, 1))


def test_more_sizes_than_are_compiled_for() -> None:
    model = dense()
    engine = engine_for(model)
    for i in range(SIZES + 3):
        x = images(3, 40 + 3 * i, 48)
        check_equal(engine(x, True, True), plain(model, x))
    assert len(engine.queues) <= SIZES + 1


@pytest.mark.parametrize("blocks", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("tap", ["norm", "raw"])
def test_blocks_asked_for(blocks: tuple[int, ...], tap: str) -> None:
    check_network(dense(), images(2, 48, 48), tap, blocks)


def test_nothing_after_the_last_block_is_in_the_graph() -> None:
    last = {blocks: engine_for(dense(), blocks).graph.model(True, False, (1, 3, 64, 64)) for blocks in ((0,), (0, 1, 2))}
    convolutions = [sum(op.get_type_name() == "Convolution" for op in model.get_ops()) for model in last.values()]
    assert convolutions == [1 + 2 * 3, 1 + 2 * 8 + 2]


def test_only_what_is_asked_is_made() -> None:
    engine, x = engine_for(dense()), images(2)
    both = engine(x, True, True)
    for mean, maps in ((True, False), (False, True)):
        for one, all_of_it in zip(engine(x, mean, maps), both, strict=True):
            assert (one.mean is None, one.maps is None) == (not mean, not maps)
            torch.testing.assert_close(one.mean if mean else one.maps, all_of_it.mean if mean else all_of_it.maps)


@pytest.mark.parametrize("change", [
    lambda x: x.to(memory_format=torch.channels_last),
    lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    lambda x: x.repeat(2, 1, 1, 1)[::2],
    lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    lambda x: x[:1].expand(3, -1, -1, -1),
    lambda x: x.clone().requires_grad_(),
])  # fmt: skip
def test_strides(change: object) -> None:
    model = dense()
    x = change(images(3, 48, 56))
    found = engine_for(model)(x, True, True)
    assert not any(each.mean.requires_grad for each in found)
    check_equal(found, plain(model, x.detach().contiguous()))


def test_images_of_other_channels() -> None:
    model = dense(in_chans=5)
    x = torch.randn(2, 5, 48, 48, generator=torch.Generator().manual_seed(0))
    check_equal(engine_for(model)(x, True, True), plain(model, x))


def test_a_row_does_not_depend_on_its_batch() -> None:
    engine, x = engine_for(dense()), images(9)
    alone = torch.cat([engine(image, True, False)[1].mean for image in x[:2].split(1)])
    torch.testing.assert_close(engine(x, True, False)[1].mean[:2], alone, rtol=1e-6, atol=1e-6)


def test_results_are_the_callers() -> None:
    engine = engine_for(dense())
    first = engine(images(3), True, True)
    kept = [(each.mean.clone(), each.maps.clone()) for each in first]
    engine(images(4), True, True)
    engine(-images(3), True, True)
    for each, (mean, maps) in zip(first, kept, strict=True):
        assert torch.equal(each.mean, mean)
        assert torch.equal(each.maps, maps)
        each.mean.zero_()
    assert torch.equal(engine(images(3), True, True)[0].mean, kept[0][0])


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


def test_calls_from_several_threads() -> None:
    engine = engine_for(dense())
    batches = [images(n) for n in (2, 3, 4, 5)]
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
def test_a_broken_image_breaks_its_own_row(value: float) -> None:
    engine, x = engine_for(dense()), images(3)
    whole = engine(x, True, True)
    x[1, 0, 5, 5] = value
    for found, before in zip(engine(x, True, True), whole, strict=True):
        assert found.mean[1].isnan().all()
        assert found.maps[1].isnan().all()
        assert torch.equal(found.mean[[0, 2]], before.mean[[0, 2]])


@pytest.mark.parametrize("values", [(float("nan"), 1.0), (float("inf"), -float("inf"))])
@pytest.mark.parametrize("tap", ["norm", "raw"])
@pytest.mark.parametrize(
    "module", ["denseblock1.denselayer2.norm2", "denseblock2.denselayer1.conv1", "transition1.conv", "norm5"]
)
def test_broken_weights_break_the_blocks_that_read_them(module: str, tap: str, values: tuple[float, float]) -> None:
    model, x = dense(), images(2)
    model.features.get_submodule(module).weight.data.flatten()[:2] = torch.tensor(values)
    found, expected = engine_for(model, (0, 1, 2), tap)(x, True, False), plain(model, x, (0, 1, 2), tap)
    broken = [not each.mean.isfinite().all() for each in found]
    assert broken == [not each.mean.isfinite().all() for each in expected]
    assert any(broken) or (module, tap) == ("norm5", "raw")


def test_images_that_are_too_small() -> None:
    model, good = dense(), images(2)
    engine = engine_for(model)
    expected = plain(model, good)
    for known in (set(), {(i, i) for i in range(SIZES)}):  # compiled for their size, and for any
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
from densefeat.features.backends import openvino
print(openvino.missing(), "openvino" in sys.modules)
openvino.load()
print("openvino" in sys.modules, any(name.split(".")[0] == "openvino_telemetry" for name in sys.modules))
"""
    assert run_apart(code, tmp_path).split() == ["None", "False", "True", "False"]
    assert not (tmp_path / "intel").exists()  # where its telemetry keeps an id


def test_missing_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing() is None
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    assert missing() == "openvino is not installed: pip install 'densefeat[openvino]'"
