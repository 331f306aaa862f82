"""Every arm returns the plain network's features."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from densefeat.bench.arms import ARMS, Arm, choose_arms
from densefeat.bench.builders import BUILDERS, CONVOLUTIONS, Setting, _build_convolution, build_ceilings
from densefeat.bench.inputs import Inputs, write_inputs
from densefeat.bench.worker import _compare_features, _pair_features
from densefeat.nets import count_flops
from support.helpers import BUNDLED

pytestmark = pytest.mark.filterwarnings("ignore")  # those of exporters and compilers; a worker's go to its log


@pytest.fixture(scope="module", params=[(BUNDLED, 32), ("densefeat_densenet121", 64)], ids=["ours alone", "timm's too"])
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Inputs]:
    name, size = request.param
    return name, write_inputs(tmp_path_factory.mktemp("inputs"), name, 3, size, None)


def check(arm: Arm, name: str, inputs: Inputs) -> dict[str, float | None]:
    x = load_file(inputs.files["batch"])["x"]
    call = BUILDERS[arm.kind](Setting(arm, name, inputs.files["weights"], torch.device("cpu"), x))
    before = x.clone()
    features, again = call(x), call(x)
    assert torch.equal(x, before)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(features, again, strict=True))
    assert all(value.dtype == torch.float32 for value in features)
    taps = inputs.taps_of_ours if arm.ours else inputs.taps_of_stages
    return _compare_features(_pair_features(features, load_file(inputs.files["expected"]), taps, inputs.rows))


def mark(arms: tuple[Arm, ...] | list[Arm]) -> list[object]:
    """Without the compiler, which takes minutes; exporters in the slow set."""
    kept = [arm for arm in arms if arm.kind != "compile" and arm.allocator == "default"]
    slow = ("openvino-export", "onnxruntime")
    return [pytest.param(arm, id=arm.name, marks=[pytest.mark.slow] if arm.kind in slow else []) for arm in kept]


@pytest.mark.parametrize("arm", mark(ARMS["cpu"]))
def test_fp32(arm: Arm, inputs: tuple[str, Inputs]) -> None:
    assert check(arm, *inputs)["difference"] < 1e-5


@pytest.mark.parametrize("arm", mark(choose_arms("all", "cpu", "bf16")))
def test_bf16(arm: Arm, inputs: tuple[str, Inputs]) -> None:
    result = check(arm, *inputs)
    assert result["cosine"] > 0.999
    assert result["difference"] > 1e-5  # it is not fp32


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    inputs = write_inputs(tmp_path, BUNDLED, 2, 32, None)
    (arm,) = choose_arms("compile", "cpu", precision)
    result = check(arm, BUNDLED, inputs)
    assert result["difference"] < 1e-5 if precision == "fp32" else result["cosine"] > 0.999


def test_a_convolution_has_the_flops_that_torch_counts() -> None:
    flops, call = _build_convolution(CONVOLUTIONS[1], torch.float32)
    assert call().shape == (8, 128, 56, 56)
    assert flops == count_flops(call)


def test_the_ceiling_is_the_fastest_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.bench.builders.CONVOLUTIONS", ((1, 4, 4, 1, 1), CONVOLUTIONS[2]))
    ((name, (flops, call)),) = build_ceilings(torch.device("cpu"), ["fp32"]).items()
    assert name == "fp32 convolution"
    assert flops == count_flops(call) > 1e9
