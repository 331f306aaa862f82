"""Numbers of a comparison from its raw seconds."""

import statistics
from collections.abc import Sequence
from typing import Any

import timm

from densefeat.bench.arms import TUNED_ALLOCATOR
from densefeat.bench.ceiling import DTYPES, network_flops
from densefeat.bench.machine import described
from densefeat.bench.networks import network_code
from densefeat.bench.plan import Plan
from densefeat.bench.rows import Row

Told = dict[str, Any]


def summary(plan: Plan, rows: Sequence[Row], shares: Sequence[float | None], load: float, rounding: float) -> Told:
    """What a comparison found, for JSON.

    Args:
        rows: The arms', and that of the ceiling.
        shares: Of the machine's time, round by round, what others used.
        load: The system's load average before the first round.
        rounding: How far the plain network's float32 features are from its float64 ones.

    Returns:
        ``arms`` (raw ``seconds`` of each round, medians, ratios to ``baseline`` in the same round, or a ``problem``),
        ``ceiling`` (largest rates, and their spread over the rounds), ``flops`` of an image, ``busy``,
        ``machine``, and the plan.
    """
    measured = [row for row in rows if row.arm is not None]
    flops = {"plain": network_flops(plan.model, plan.size), "pooled first": network_flops(plan.model, plan.size, True)}
    rates = ceiling_rates([row for row in rows if row.arm is None])
    traffic = traffic_bytes(plan)
    baseline = next((row for row in measured if row.problem is None), None)
    told: Told = {
        "model": plan.model, "network": network_code(plan.model), "batch": plan.batch, "size": plan.size,
        "device": plan.device, "precision": plan.precision, "rounds": plan.rounds,
        "images": str(plan.images) if plan.images else "noise", "flops": flops, "traffic_bytes": traffic,
        "rounding": rounding, "ceiling": rates,
        "baseline": title(plan, baseline) if baseline else None,
        "arms": [arm_told(plan, row, baseline) for row in measured],
        "busy": {"shares": list(shares), "share": mean(shares), "load_before": load},
        "tuned_allocator": TUNED_ALLOCATOR, "machine": described(plan.device),
    }  # fmt: skip
    for arm in told["arms"]:
        if arm["problem"] is None:
            arm["percent"] = percent_of_ceiling(arm, told)
    return told


def arm_told(plan: Plan, row: Row, baseline: Row | None) -> Told:
    arm = row.arm
    assert arm is not None
    told: Told = {
        "name": arm.name, "title": title(plan, row), "ours": arm.ours, "precision": arm.precision, "layout": arm.layout,
        "allocator": arm.allocator, "pools_first": arm.pools_first, "problem": row.problem, **row.told,
    }  # fmt: skip
    if row.problem is not None:
        return told
    seconds = [turn["seconds"] for turn in row.turns]
    told |= {
        "steps": row.steps,
        "seconds": seconds,
        "peak_bytes": max(turn["peak_bytes"] for turn in row.turns),
    }
    told["images_per_second"] = statistics.median(plan.batch * row.steps / own for own in seconds)
    assert baseline is not None
    own_base = [turn["seconds"] / baseline.steps for turn in baseline.turns]
    ratios = [base / (own / row.steps) for base, own in zip(own_base, seconds, strict=True)]
    told["ratio"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return told


def title(plan: Plan, row: Row) -> str:
    assert row.arm is not None
    return row.arm.title(network_code(plan.model))


def ceiling_rates(rows: Sequence[Row]) -> Told:
    """Of each rate the largest, those of all rounds, and their spread: (largest − least) / largest."""
    turns = [turn["rates"] for row in rows for turn in row.turns]
    found = {name: [turn[name] for turn in turns] for name in (turns[0] if turns else ())}
    return {
        name: {"largest": max(rates), "spread": 1 - min(rates) / max(rates), "rounds": rates} for name, rates in found.items()
    }


def percent_of_ceiling(arm: Told, told: Told) -> dict[str, float]:
    """Of the largest rate of arithmetic, for its own arithmetic; on a GPU, of the least traffic at the rate of a copy, too."""
    rates, percent = told["ceiling"], {}
    kind = "product" if told["device"] == "cuda" else "convolution"
    if rate := rates.get(f"{arm['precision']} {kind}"):
        flops = told["flops"]["pooled first" if arm["pools_first"] else "plain"]
        percent["arithmetic"] = 100 * arm["images_per_second"] * flops / rate["largest"]
    if told["traffic_bytes"] and "copy" in rates:
        percent["traffic"] = 100 * arm["images_per_second"] * told["traffic_bytes"][arm["precision"]] / rates["copy"]["largest"]
    return percent


def traffic_bytes(plan: Plan) -> dict[str, int] | None:
    """What the triton engine reads and writes for an image, a precision; None on a CPU."""
    if plan.device != "cuda":
        return None
    from densefeat.features.engines.folded import fold
    from densefeat.features.engines.triton.engine import traffic

    network = fold(timm.create_model(plan.model).eval())
    return {name: traffic(network, plan.size, plan.size, dtype) for name, dtype in DTYPES.items()}


def mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return statistics.fmean(known) if known else None
