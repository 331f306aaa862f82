"""A whole comparison, small, and what is told of it."""

import json
import statistics
from dataclasses import replace
from typing import Any

import pytest

from densefeat.bench.arms import Arm
from densefeat.bench.compare import compare
from densefeat.bench.plan import make_plan
from densefeat.bench.report import brief, busy_notes, heading, markdown_table, notes, overview, text_table, verdict
from densefeat.bench.rows import steps_of
from densefeat.bench.summary import percent_of_ceiling
from densefeat.errors import UsageError
from support.helpers import BUNDLED

ARMS = [Arm("hooks", "hooks"), Arm("triton", "triton"), Arm("reference", "reference")]


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def told(said: list[str]) -> dict[str, Any]:
    """Read back from JSON, as a file of it would be."""
    plan = replace(make_plan(BUNDLED, "hooks", device="cpu", batch=2, rounds=2, steps=2), arms=ARMS)
    return json.loads(json.dumps(compare(plan, said.append), allow_nan=False))


def test_arms_have_their_raw_numbers_and_medians(told: dict[str, Any]) -> None:
    hooks, triton, reference = told["arms"]
    for arm in (hooks, reference):
        assert (arm["problem"], arm["steps"], len(arm["seconds"])) == (None, 2, 2)
        assert arm["images_per_second"] == pytest.approx(statistics.median(2 * 2 / each for each in arm["seconds"]))
        assert arm["difference"] < 1e-5
        assert arm["peak_bytes"] > 0
        assert arm["percent"]["arithmetic"] > 0
    assert hooks["ratio"] == {"median": 1, "least": 1, "most": 1}
    ratios = [base / own for base, own in zip(hooks["seconds"], reference["seconds"], strict=True)]
    assert reference["ratio"]["median"] == pytest.approx(statistics.median(ratios))
    assert (reference["ratio"]["least"], reference["ratio"]["most"]) == pytest.approx((min(ratios), max(ratios)))
    assert "images_per_second" not in triton
    assert triton["problem"].startswith("backend 'triton': ")


def test_what_was_measured_is_on_record(told: dict[str, Any]) -> None:
    assert (told["model"], told["batch"], told["size"], told["device"]) == (BUNDLED, 2, 32, "cpu")
    assert told["baseline"] == "plain network, hooks that clone, NCHW, fp32"
    assert told["flops"]["plain"] > told["flops"]["pooled first"] > 0
    (rate,) = told["ceiling"].values()
    assert rate["largest"] == max(rate["rounds"])
    assert len(rate["rounds"]) == 2
    assert rate["spread"] == pytest.approx(1 - min(rate["rounds"]) / max(rate["rounds"]))
    assert len(told["busy"]["shares"]) == 2
    assert 0 <= told["busy"]["share"] <= 1
    assert told["machine"]["versions"]["torch"]


def test_progress_is_told(told: dict[str, Any], said: list[str]) -> None:
    assert said[0].startswith("making weights")
    assert said[1] == "building plain network, hooks that clone, NCHW, fp32"
    assert said[-1] == "round 2 of 2"


def test_the_table(told: dict[str, Any]) -> None:
    head, hooks, triton, reference = text_table(told).splitlines()
    assert head.split() == ["arm", "images/s", "ratio", "(range)", "of", "ceiling", "memory", "first", "call", "off", "by"]
    assert hooks.startswith("plain network, hooks that clone, NCHW, fp32 ")
    assert "1.00 (1.00–1.00)" in hooks
    assert len(head) == len(hooks) == len(reference)
    assert triton.split("fp32", 1)[1].strip() == told["arms"][1]["problem"]


def test_markdown_has_as_many_cells_in_every_row(told: dict[str, Any]) -> None:
    lines = markdown_table(told).splitlines()
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {8}


def test_the_heading_and_the_notes(told: dict[str, Any]) -> None:
    assert heading(told).startswith(f"{BUNDLED}, batch 2, 32×32 pixels; ")
    ratio, off, ceiling, *_ = notes(told)
    assert ratio == "ratio: to plain network, hooks that clone, NCHW, fp32, in the same round; median of 2 rounds and range"
    assert off.startswith("off by: from the plain network in float64")
    assert "FLOP/s; an image is 0.58 GFLOP" in ceiling


def test_the_verdict(told: dict[str, Any]) -> None:
    (line,) = verdict(told)
    assert line.startswith("fastest backend here in fp32: reference, ")
    assert line.endswith(" times the fastest other (plain network, hooks that clone, NCHW, fp32)")


@pytest.mark.parametrize(
    ("share", "spread", "found"),
    [
        (0.05, 0.1, []),
        (0.30, 0.1, ["the machine was busy: others used 30% of its processors' time; ratios are indicative only"]),
        (0.05, 0.4, ["the machine was unsteady: its fp32 convolution varied by 40%"]),
        (None, 0.1, ["whether other processes disturbed this cannot be told on this system"]),
    ],
)
def test_a_busy_machine_is_told(told: dict[str, Any], share: float | None, spread: float, found: list[str]) -> None:
    rates = {name: rate | {"spread": spread} for name, rate in told["ceiling"].items()}
    assert busy_notes(told | {"busy": {"share": share}, "ceiling": rates}) == found


def test_an_overview_of_several(told: dict[str, Any]) -> None:
    other = told | {"batch": 8, "arms": told["arms"][:2]}
    lines = overview([told, other]).splitlines()
    assert lines[0] == "| arm | densenet_bc100_k12, 2 | densenet_bc100_k12, 8 |"
    hooks, reference = (brief(arm) for arm in told["arms"][::2])
    assert lines[2:] == [
        f"| hooks, fp32 | {hooks} | {hooks} |",
        "| triton, fp32 | – | – |",
        f"| reference, fp32 | {reference} | – |",
    ]


def test_percents_count_an_arms_own_arithmetic() -> None:
    rates = {"bf16 product": {"largest": 100e12}, "copy": {"largest": 4e12}}
    told = {"device": "cuda", "flops": {"plain": 6e9, "pooled first": 5e9}, "traffic_bytes": {"bf16": 40e6}, "ceiling": rates}
    arm = {"precision": "bf16", "pools_first": True, "images_per_second": 10_000}
    assert percent_of_ceiling(arm, told) == pytest.approx({"arithmetic": 50, "traffic": 10})
    assert percent_of_ceiling(arm | {"pools_first": False}, told)["arithmetic"] == pytest.approx(60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet50"}, "model 'resnet50': engines are for"),
        ({"arms": "best"}, "arm 'best': on cpu choose"),
        ({"device": "meta"}, "device 'meta': engines are compared on cpu or cuda"),
    ],
)
def test_plans_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(**({"device": "cpu"} | options))


@pytest.mark.parametrize(("call_seconds", "steps"), [(0.1, 5), (0.3, 2), (7.0, 1), (1e-9, 500)])
def test_steps_fill_half_a_second(call_seconds: float, steps: int) -> None:
    assert steps_of(call_seconds) == steps


def test_a_plan_has_what_was_not_said() -> None:
    plan = make_plan(device="cpu")
    assert (plan.model, plan.size, plan.steps) == ("densefeat_densenet121", 224, None)
    assert make_plan(BUNDLED, device="cpu").size == 32
    assert [arm.name for arm in plan.arms] == ["timm-nchw", "timm-nhwc", "reference", "buffer", "openvino"]
