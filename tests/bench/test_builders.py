"""Every arm returns the plain network's features."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from densefeat.base import has_arithmetic
from densefeat.bench.arms import ARMS, Arm, choose_arms
from densefeat.bench.builders import ArmUnderTest, Ceiling, _check_features, _compare_features
from densefeat.bench.inputs import Inputs, write_inputs
from densefeat.errors import UsageError
from densefeat.nets import count_flops
from support.helpers import BUNDLED

pytestmark = pytest.mark.filterwarnings("ignore")  # those of exporters and compilers; a worker's go to its log


@pytest.fixture(scope="module", params=[(BUNDLED, 32), ("densefeat_densenet121", 64)], ids=["ours alone", "timm's too"])
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Inputs]:
    name, size = request.param
    return name, write_inputs(tmp_path_factory.mktemp("inputs"), name, 3, size, None)


def check(arm: Arm, name: str, inputs: Inputs) -> dict[str, Any]:
    test = ArmUnderTest(arm, name, inputs, "cpu", 1)
    result = test.build()
    assert result["problem"] is None
    x = test.x.clone()
    assert all(value.dtype == torch.float32 for value in test.call(test.x))
    assert torch.equal(test.x, x)
    return result


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
    if "openvino" in arm.kind and not has_arithmetic("bf16"):
        with pytest.raises(UsageError, match="OpenVINO has no bf16 on this processor: it would compute in fp32"):
            check(arm, *inputs)
        return
    result = check(arm, *inputs)
    assert result["cosine"] > 0.999
    assert result["difference"] > 1e-5


@pytest.mark.slow
def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    inputs = write_inputs(tmp_path, BUNDLED, 2, 32, None)
    (arm,) = choose_arms("compile", "cpu", "fp32")
    assert check(arm, BUNDLED, inputs)["difference"] < 1e-5


def test_the_ceiling_is_the_fastest_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.bench.builders._CONVOLUTIONS", ((1, 4, 4, 1, 1), (8, 128, 128, 3, 56)))
    ceiling = Ceiling("cpu", ["fp32"])
    ceiling.build()
    ((name, (flops, call)),) = ceiling.works.items()
    assert name == "fp32 convolution"
    assert flops == count_flops(call) > 1e9
    assert ceiling.run()["rates"][name] > 0


def test_features_that_are_not_finite_are_wrong() -> None:
    """Only in the second block: Python's max would ignore NaN."""
    right = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    for broken in (float("nan"), float("inf")):
        wrong = right.clone()
        wrong[1, 2] = broken
        summary = _compare_features([right, wrong, right], [right] * 3)
        json.dumps(summary, allow_nan=False)
        for precision in ("fp32", "bf16"):
            assert _check_features(precision, summary, 0.0) == "wrong features: not finite"
    assert _check_features("fp32", _compare_features([right], [right]), 0.0) is None


@pytest.mark.parametrize(
    ("precision", "change", "rounding", "problem"),
    [
        ("fp32", {"difference": 2e-5}, 0.0, "wrong features: off by 2.0e-05"),
        ("fp32", {"difference": 2e-5}, 1e-5, None),  # float32 itself is that far off
        ("bf16", {"cosine": 0.98}, 0.0, "wrong features: cosine 0.9800"),
        ("bf16", {"difference": 0.1}, 0.0, None),
    ],
)
def test_tolerances(precision: str, change: dict[str, float], rounding: float, problem: str | None) -> None:
    assert _check_features(precision, {"difference": 1e-7, "cosine": 1.0} | change, rounding) == problem
