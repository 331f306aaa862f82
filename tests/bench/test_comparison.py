"""A whole comparison, small, and what is reported of it."""

import json
import statistics
from typing import Any

import pytest

from densefeat.bench.arms import Arm
from densefeat.bench.comparison import _find_baseline, _measure_other_load, _relate_to_ceiling, compare, make_plan
from densefeat.bench.machine import USABLE_CPUS
from densefeat.bench.report import _brief, _disturbances, _notes, _verdicts, format_comparison, format_overview
from densefeat.errors import UsageError
from support.helpers import BUNDLED


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def comparison(said: list[str]) -> dict[str, Any]:
    """Two arms that were measured, read back from JSON as from a file."""
    plan = make_plan(BUNDLED, "hooks,reference", device="cpu", batch=2, rounds=2, steps=2)
    return json.loads(json.dumps(compare(plan, said.append), allow_nan=False))


@pytest.fixture(scope="module")
def with_failure(comparison: dict[str, Any]) -> dict[str, Any]:
    failed = {"name": "triton", "title": "densefeat triton, fp32", "precision": "fp32", "problem": "no GPU", "ours": True}
    hooks, reference = comparison["arms"]
    return comparison | {"arms": [hooks, failed, reference]}


def test_arms_have_their_raw_numbers_and_medians(comparison: dict[str, Any]) -> None:
    hooks, reference = comparison["arms"]
    for arm in (hooks, reference):
        assert (arm["problem"], arm["steps"], len(arm["seconds"])) == (None, 2, 2)
        assert arm["images_per_second"] == pytest.approx(statistics.median(2 * 2 / each for each in arm["seconds"]))
        assert arm["difference"] < 1e-5
        assert arm["peak_bytes"] > 0
        assert arm["percent"]["arithmetic"] > 0
        assert arm["baseline"] == "plain network, hooks that clone, NCHW, fp32"
    assert hooks["ratio"] == {"median": 1, "least": 1, "most": 1}
    ratios = [base / own for base, own in zip(hooks["seconds"], reference["seconds"], strict=True)]
    assert reference["ratio"]["median"] == pytest.approx(statistics.median(ratios))
    assert (reference["ratio"]["least"], reference["ratio"]["most"]) == pytest.approx((min(ratios), max(ratios)))


def test_the_conditions_are_recorded(comparison: dict[str, Any]) -> None:
    keys = ("model", "batch", "size", "device", "network", "images")
    assert [comparison[key] for key in keys] == [BUNDLED, 2, 32, "cpu", "plain network", "noise"]
    assert comparison["baselines"] == {"fp32": comparison["baseline"]}
    assert comparison["flops"]["plain"] > comparison["flops"]["pooled first"] > 0
    (rate,) = comparison["ceiling"].values()
    assert rate["largest"] == max(rate["rounds"])
    assert len(rate["rounds"]) == 2
    assert rate["spread"] == pytest.approx(1 - min(rate["rounds"]) / max(rate["rounds"]))
    assert len(comparison["busy"]["shares"]) == 2
    assert 0 <= comparison["busy"]["share"] <= 1
    assert comparison["machine"]["versions"]["torch"]
    assert comparison["machine"]["instruction_sets"]


def test_ratios_are_to_the_best_eager_timm_of_the_same_precision() -> None:
    names = ("timm-nchw", "timm-nhwc", "timm-nhwc-tuned", "buffer")
    full, half = ([Arm(name, "timm", precision=precision) for name in names] for precision in ("fp32", "bf16"))
    assert _find_baseline(full + half, half[3]) is half[2]
    assert _find_baseline(full + half[:2], half[1]) is half[1]
    assert _find_baseline(full + half, full[3]) is full[2]
    assert _find_baseline([half[3]], half[3]) is half[3]


def test_shares_are_between_0_and_1() -> None:
    width = len(USABLE_CPUS)
    assert _measure_other_load(0.0, 1.0 * width, 2.0) == 0.5
    assert _measure_other_load(0.0, -1.0, 2.0) == 0  # the counters are rounded
    assert _measure_other_load(0.0, 2.0 * width, 1.0) == 1
    assert _measure_other_load(None, 1.0, 1.0) is None


def test_progress_is_shown(comparison: dict[str, Any], said: list[str]) -> None:
    assert said[0].startswith("making weights")
    assert said[1] == "building plain network, hooks that clone, NCHW, fp32"
    assert said[-1] == "round 2 of 2"


def test_the_table(with_failure: dict[str, Any]) -> None:
    heading, _, columns, hooks, triton, reference, *_ = format_comparison(with_failure).splitlines()
    assert heading.startswith(f"{BUNDLED}, batch 2, 32×32 pixels; ")
    assert columns.split() == ["arm", "images/s", "ratio", "(range)", "of", "ceiling", "memory", "first", "call", "off", "by"]
    assert hooks.startswith("plain network, hooks that clone, NCHW, fp32 ")
    assert "1.00 (1.00–1.00)" in hooks
    assert len(columns) == len(hooks) == len(reference)
    assert triton.split("fp32", 1)[1].strip() == "no GPU"


def test_markdown_has_as_many_cells_in_every_row(with_failure: dict[str, Any]) -> None:
    lines = format_comparison(with_failure, markdown=True).splitlines()
    assert lines[0].startswith("### ")
    assert [line.count("|") for line in lines[2:7]] == [8] * 5
    assert lines[-1].startswith("- fastest backend here")


def test_notes_explain_the_columns(comparison: dict[str, Any]) -> None:
    ratio, off, ceiling, *_ = _notes(comparison)
    assert ratio.startswith(
        "ratio in fp32: to plain network, hooks that clone, NCHW, fp32, in the same round; median of 2 rounds"
    )
    assert off.startswith("off by: from the plain network in float64")
    assert "FLOP/s; an image is 0.58 GFLOP" in ceiling


def test_the_verdict(with_failure: dict[str, Any]) -> None:
    (line,) = _verdicts(with_failure)
    assert line.startswith("fastest backend here in fp32: reference, ")
    assert line.endswith(" times the fastest other (plain network, hooks that clone, NCHW, fp32)")


@pytest.mark.parametrize(
    ("half", "device", "flags", "line"),
    [
        (10.0, "cpu", False, "fp32 (buffer), 4.00 times as fast as bf16 (buffer); this processor emulates bf16, so that "
                             "extractors and runs compute in fp32"),
        (10.0, "cuda", False, "fp32 (buffer), 4.00 times as fast as bf16 (buffer)"),
        (80.0, "cpu", True, "bf16 (buffer), 2.00 times as fast as fp32 (buffer)"),
    ],
)  # fmt: skip
def test_the_precision_that_pays(half: float, device: str, flags: bool, line: str) -> None:
    rates = {("reference", "fp32"): 20.0, ("buffer", "fp32"): 40.0, ("reference", "bf16"): half / 2, ("buffer", "bf16"): half}
    arms = [{"name": name, "precision": precision, "ours": True, "problem": None, "images_per_second": rate}
            for (name, precision), rate in rates.items()]  # fmt: skip
    comparison: dict[str, Any] = {"device": device, "machine": {"bf16": flags}, "arms": arms}
    assert _verdicts(comparison)[-1] == f"precision that pays here: {line}"
    assert len(_verdicts(comparison | {"arms": arms[:2]})) == 1


@pytest.mark.parametrize(
    ("share", "spread", "lines"),
    [
        (0.05, 0.1, []),
        (0.30, 0.1, ["the machine was busy: others used 30% of its processors' time; ratios are indicative only"]),
        (0.05, 0.4, ["the machine was unsteady: its fp32 convolution varied by 40%"]),
        (None, 0.1, ["this system does not tell whether other processes disturbed the measurement"]),
    ],
)
def test_a_disturbed_machine_gets_a_note(share: float | None, spread: float, lines: list[str]) -> None:
    comparison = {"busy": {"share": share}, "ceiling": {"fp32 convolution": {"spread": spread}}}
    assert _disturbances(comparison) == lines


def test_an_overview_of_several(with_failure: dict[str, Any]) -> None:
    other = with_failure | {"batch": 8, "arms": with_failure["arms"][:2]}
    lines = format_overview([with_failure, other]).splitlines()
    assert lines[0] == "| arm | densenet_bc100_k12, 2 | densenet_bc100_k12, 8 |"
    hooks, reference = (_brief(arm) for arm in with_failure["arms"][::2])
    assert lines[2:] == [
        f"| hooks, fp32 | {hooks} | {hooks} |",
        "| triton, fp32 | – | – |",
        f"| reference, fp32 | {reference} | – |",
    ]


def test_percents_count_an_arms_own_arithmetic() -> None:
    rates = {"bf16 product": {"largest": 100e12}, "copy": {"largest": 4e12}}
    work = {"flops": {"plain": 6e9, "pooled first": 5e9}, "traffic_bytes": {"bf16": 40e6}, "ceiling": rates}
    arm = {"precision": "bf16", "pools_first": True, "images_per_second": 10_000}
    assert _relate_to_ceiling(arm, work) == pytest.approx({"arithmetic": 50, "traffic": 10})
    assert _relate_to_ceiling(arm | {"pools_first": False}, work)["arithmetic"] == pytest.approx(60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet50"}, "model 'resnet50': engines are for"),
        ({"arms": "best"}, "arm 'best': on cpu choose"),
        ({"device": "meta"}, "device 'meta': engines are compared on cpu or cuda"),
    ],
)
def test_plans_that_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(**({"device": "cpu"} | options))


def test_defaults_of_a_plan() -> None:
    plan = make_plan(device="cpu")
    assert (plan.model, plan.size, plan.steps) == ("densefeat_densenet121", 224, None)
    assert make_plan(BUNDLED, device="cpu").size == 32
    assert [arm.name for arm in plan.arms] == ["timm-nhwc", "timm-nhwc-tuned", "reference", "buffer", "openvino"]
