"""BufferEngine alone; test_cpu_engines.py tests what it shares with OpenVinoEngine."""

import resource
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from densefeat.features.engines.cpu import engine, kernels
from densefeat.features.engines.cpu.engine import BufferEngine
from densefeat.features.engines.cpu.kernels import PlainConvolution
from densefeat.features.engines.engine import BlockOutput, concat_outputs
from densefeat.features.engines.folded import fold_network
from support.engines import assert_close_outputs, compute_reference, deluge, dense, make_images, make_spec, smallest_cosine
from support.helpers import relative_difference


def engine_for(model: nn.Module, *options: object) -> BufferEngine:
    return BufferEngine(fold_network(model), make_spec(*options))


def check_network(model: nn.Module, x: torch.Tensor, tap: str, blocks: tuple[int, ...]) -> None:
    assert_close_outputs(engine_for(model, blocks, tap)(x, True, True), compute_reference(model, x, blocks, tap))


def test_trained_weights(trained: nn.Module) -> None:
    x = make_images(9, 32, 32)
    check_network(trained, x, "norm", (0, 1, 2))
    assert (
        smallest_cosine(
            engine_for(trained, (0, 1, 2), "norm", "bf16")(x, True, False), compute_reference(trained, x, (0, 1, 2))
        )
        > 0.9995
    )


@pytest.mark.parametrize("make", [dense, deluge])
@pytest.mark.parametrize(("chunk", "group"), [(1, 1), (10**6, 1), (10**9, 10**9)])
def test_any_number_of_images_in_a_chunk_and_a_group(
    make: type, chunk: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make(), make_images(7, 48, 48)
    expected = compute_reference(model, x)
    monkeypatch.setattr(engine, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(kernels, "_GROUP_BYTES", group)
    assert_close_outputs(engine_for(model)(x, True, True), expected)


@pytest.mark.parametrize("make", [dense, deluge])
def test_bf16(make: type) -> None:
    model, x = make(), make_images(4, 96, 96)
    outputs, expected = engine_for(model, (0, 1), "norm", "bf16")(x, True, True), compute_reference(model, x)
    assert smallest_cosine(outputs, expected) >= 0.9995
    for a, b in zip(outputs, expected, strict=True):
        assert (a.mean.dtype, a.maps.dtype) == (torch.float32, torch.bfloat16)
        assert relative_difference(a.mean, b.mean) < 0.02
        assert relative_difference(a.maps.float(), b.maps) < 0.05


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = dense(), make_images(2)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # as on processors without it
    engine = engine_for(model)
    assert isinstance(engine.stem.conv, PlainConvolution)
    assert_close_outputs(engine(x, True, True), compute_reference(model, x))


def test_images_that_are_too_small() -> None:
    model, good = dense(), make_images(2)
    engine = engine_for(model)
    expected = compute_reference(model, good)
    with pytest.raises(RuntimeError):
        engine(make_images(2, 2, 48), True, True)
    assert_close_outputs(engine(good, True, True), expected)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("make", [dense, deluge])
def test_memory_does_not_grow(make: type) -> None:
    engine = engine_for(make())

    def calls(times: int) -> None:
        for i in range(times):
            engine(make_images(1 + i % 9, 48 + i % 5), True, bool(i % 2))

    calls(40)
    before = resident_bytes()
    calls(120)
    assert resident_bytes() - before < 16 * 2**20


def test_outputs_are_concatenated_in_order() -> None:
    parts = [BlockOutput(torch.full((1, 2), float(i)), None) for i in range(3)]
    output = concat_outputs(parts)
    assert output.mean[:, 0].tolist() == [0, 1, 2]
    assert output.maps is None
