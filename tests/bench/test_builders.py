"""Every arm gives the plain network's features."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from densefeat.bench.arms import CPU, Arm, chosen_arms
from densefeat.bench.builders import BUILDERS, Setting
from densefeat.bench.networks import Inputs, write_inputs
from densefeat.bench.worker import compared, farthest
from support.helpers import BUNDLED

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters' and compilers' own; a worker's go to its log


@pytest.fixture(scope="module", params=[(BUNDLED, 32), ("densefeat_densenet121", 64)], ids=["ours alone", "timm's too"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Inputs]:
    name, size = request.param
    return name, write_inputs(tmp_path_factory.mktemp("inputs"), name, 3, size, None)


def measured(arm: Arm, name: str, inputs: Inputs) -> dict[str, float | None]:
    x = load_file(inputs.files["batch"])["x"]
    call = BUILDERS[arm.kind](Setting(arm, name, inputs.files["weights"], torch.device("cpu"), x))
    before = x.clone()
    features, again = call(x), call(x)
    assert torch.equal(x, before)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(features, again, strict=True))
    assert all(value.dtype == torch.float32 for value in features)
    taps = inputs.taps_of_ours if arm.ours else inputs.taps_of_stages
    return farthest(compared(features, load_file(inputs.files["expected"]), taps, inputs.rows))


@pytest.mark.parametrize(
    "arm", [arm for arm in CPU if arm.kind != "compile" and arm.allocator == "default"], ids=lambda arm: arm.name
)
def test_fp32(arm: Arm, written: tuple[str, Inputs]) -> None:
    assert measured(arm, *written)["difference"] < 1e-5


BF16 = [arm for arm in chosen_arms("all", "cpu", "bf16") if arm.kind != "compile" and arm.allocator == "default"]


@pytest.mark.parametrize(
    "arm",
    [pytest.param(arm, id=arm.name, marks=[pytest.mark.slow] if arm.kind == "openvino-export" else []) for arm in BF16],
)
def test_bf16(arm: Arm, written: tuple[str, Inputs]) -> None:
    told = measured(arm, *written)
    assert told["cosine"] > 0.999
    assert told["difference"] > 1e-5  # it is not fp32


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    inputs = write_inputs(tmp_path, BUNDLED, 2, 32, None)
    (arm,) = chosen_arms("compile", "cpu", precision)
    told = measured(arm, BUNDLED, inputs)
    assert told["difference"] < 1e-5 if precision == "fp32" else told["cosine"] > 0.999
