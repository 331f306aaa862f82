"""A comparison: its plan, the workers that take turns round by round, and the numbers that follow from their seconds."""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm

from densefeat.base import choose_device, raise_on_sigterm
from densefeat.bench.arms import BASELINES, PRECISIONS, TUNED_ALLOCATOR, Arm, choose_arms
from densefeat.bench.builders import DTYPES
from densefeat.bench.crew import Crew, Member
from densefeat.bench.inputs import Inputs, check_name, default_size, network_code, write_inputs
from densefeat.bench.machine import describe_machine, read_cpu_time, share_of_others
from densefeat.bench.measure import compare_rounds
from densefeat.errors import UsageError
from densefeat.features import count_traffic
from densefeat.nets import network_flops

_REST_SECONDS = 0.02  # between turns: threads that wait for more work give up first

Say = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """What a comparison measures. ``steps``: calls a turn; None for about half a second's. ``images`` None: noise."""

    model: str
    arms: Sequence[Arm]
    precision: str
    batch: int
    size: int
    device: str
    rounds: int
    steps: int | None
    images: Path | None


def make_plan(
    model: str = "densefeat_densenet121",
    arms: str = "quick",
    precision: str = "fp32",
    batch: int = 8,
    size: int | None = None,
    device: str = "auto",
    rounds: int = 5,
    steps: int | None = None,
    images: Path | None = None,
) -> Plan:
    """Make a plan that can be carried out on this machine.

    Args:
        model: A network of ours; its weights are random, with statistics of noise.
        arms: As :func:`densefeat.bench.arms.choose_arms` takes them.
        precision: ``"fp32"``, ``"bf16"`` or ``"both"``.
        size: Pixels of the square images; None for the network's own.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU if there is one.

    Raises:
        UsageError: A device or an arm that this machine does not have, or a network that no engine is for.
    """
    check_name(model)
    kind = choose_device(device).type
    kind = "cpu" if kind == "mps" and device == "auto" else kind
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r}: engines are compared on cpu or cuda")
    chosen = choose_arms(arms, kind, precision)
    return Plan(model, chosen, precision, batch, size or default_size(model), kind, rounds, steps, images)


def compare(plan: Plan, say: Say = lambda _: None) -> dict[str, Any]:
    """Measure every arm of the plan in a process of its own; an arm that fails costs only its row.

    Args:
        say: Called with a line on what is being done.

    Returns:
        For JSON: ``arms`` (raw ``seconds`` of each round, median rate, ``ratio`` to the baseline of the same precision in the
        same round, or a ``problem``), ``ceiling`` (largest rates, and their spread over the rounds), ``flops`` of an image,
        ``busy``, ``machine``, and the plan.

    Raises:
        UsageError: No image in the folder, or one for which the plain network's features are not finite.
        Interrupted: SIGTERM, where it has no handler; a KeyboardInterrupt. No process and no file is left.
    """
    with raise_on_sigterm(), tempfile.TemporaryDirectory(prefix="densefeat-bench-") as temporary:
        say("making weights, images and the expected features")
        inputs = write_inputs(Path(temporary), plan.model, plan.batch, plan.size, plan.images)
        with Crew(Path(temporary)) as crew:
            for arm in plan.arms:
                say(f"building {arm.title(network_code(plan.model))}")
                crew.start(arm).build(_arm_request(plan, arm, inputs), plan.steps, inputs.rounding)
            if any(member.problem is None for member in crew.members):
                say("looking for the machine's largest rates")
                request = {"arm": None, "device": plan.device, "precisions": PRECISIONS[plan.precision]}
                crew.start(None).build(request, 1, 0.0)
            load = os.getloadavg()[0]
            shares = _run_rounds(crew, plan.rounds, say)
            busy = {"shares": shares, "share": _mean(shares), "load_before": load}
            return _summarize(plan, crew.members, inputs.rounding) | {"busy": busy}


def _arm_request(plan: Plan, arm: Arm, inputs: Inputs) -> dict[str, Any]:
    """The first request to an arm's worker."""
    taps = inputs.taps_of_ours if arm.ours else inputs.taps_of_stages
    names = {"arm": asdict(arm), "model": plan.model, "device": plan.device, "taps": taps, "rows": inputs.rows}
    return names | inputs.files


def _run_rounds(crew: Crew, rounds: int, say: Say) -> list[float | None]:
    """Let every member take a turn each round, in an order that changes; return the share that others used of each round."""
    order = list(crew.members)
    shuffle = random.Random(0).shuffle
    shares = []
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        shuffle(order)
        before = read_cpu_time([os.getpid(), *crew.processes])
        for member in order:
            member.take_turn()
            time.sleep(_REST_SECONDS)
        shares.append(share_of_others(before, read_cpu_time([os.getpid(), *crew.processes])))
    return shares


def _summarize(plan: Plan, members: Sequence[Member], rounding: float) -> dict[str, Any]:
    measured = [member for member in members if member.arm is not None]
    network = timm.create_model(plan.model).eval()
    flops = {"plain": network_flops(network, plan.size), "pooled first": network_flops(network, plan.size, pool_first=True)}
    traffic = None
    if plan.device == "cuda":
        traffic = {name: count_traffic(network, plan.size, plan.size, dtype) for name, dtype in DTYPES.items()}
    work = {"flops": flops, "traffic_bytes": traffic, "ceiling": _summarize_ceiling(members)}
    arms = [_summarize_arm(plan, member, _find_baseline(measured, member)) for member in measured]
    for arm in arms:
        if arm["problem"] is None:
            arm["percent"] = _percent_of_ceiling(arm, work)
    return {
        "model": plan.model, "network": network_code(plan.model), "batch": plan.batch, "size": plan.size,
        "device": plan.device, "precision": plan.precision, "rounds": plan.rounds,
        "images": str(plan.images) if plan.images else "noise", "rounding": rounding, **work,
        "baseline": next((arm["baseline"] for arm in arms if arm["problem"] is None), None),
        "baselines": {arm["precision"]: arm["baseline"] for arm in arms if arm["problem"] is None},
        "arms": arms, "tuned_allocator": TUNED_ALLOCATOR, "machine": describe_machine(plan.device),
    }  # fmt: skip


def _find_baseline(members: Sequence[Member], own: Member) -> Member | None:
    """The member of the same precision that ratios are to: the best eager timm, else the first that could be measured."""
    assert own.arm is not None
    measured = {member.arm.name: member for member in members
                if member.arm is not None and member.problem is None and member.arm.precision == own.arm.precision}  # fmt: skip
    return next((measured[name] for name in (*BASELINES, *measured) if name in measured), None)


def _summarize_arm(plan: Plan, member: Member, baseline: Member | None) -> dict[str, Any]:
    arm, network = member.arm, network_code(plan.model)
    assert arm is not None
    summary: dict[str, Any] = {
        "name": arm.name, "title": arm.title(network), "ours": arm.ours, "precision": arm.precision, "layout": arm.layout,
        "allocator": arm.allocator, "pools_first": arm.pools_first, "problem": member.problem, **member.summary,
    }  # fmt: skip
    if member.problem is not None:
        return summary
    assert baseline is not None
    assert baseline.arm is not None
    seconds = [turn["seconds"] for turn in member.turns]
    calls = [each / member.steps for each in seconds]
    return summary | {
        "steps": member.steps, "seconds": seconds, "peak_bytes": max(turn["peak_bytes"] for turn in member.turns),
        "images_per_second": statistics.median(plan.batch / each for each in calls), "baseline": baseline.arm.title(network),
        "ratio": compare_rounds(calls, [turn["seconds"] / baseline.steps for turn in baseline.turns]),
    }  # fmt: skip


def _percent_of_ceiling(arm: dict[str, Any], work: dict[str, Any]) -> dict[str, float]:
    """An arm's arithmetic in per cent of the largest rate; on a GPU also the least traffic, of the rate of a copy."""
    rates = {name.rpartition(" ")[0] or name: rate["largest"] for name, rate in work["ceiling"].items()}
    percent, speed = {}, 100 * arm["images_per_second"]
    if largest := rates.get(arm["precision"]):
        percent["arithmetic"] = speed * work["flops"]["pooled first" if arm["pools_first"] else "plain"] / largest
    if work["traffic_bytes"] and "copy" in rates:
        percent["traffic"] = speed * work["traffic_bytes"][arm["precision"]] / rates["copy"]
    return percent


def _summarize_ceiling(members: Sequence[Member]) -> dict[str, Any]:
    """The largest of each rate, those of all rounds, and their spread: (largest − least) / largest."""
    turns = [turn["rates"] for member in members if member.arm is None for turn in member.turns]
    rates = {name: [turn[name] for turn in turns] for name in (turns[0] if turns else ())}
    return {name: {"largest": max(each), "spread": 1 - min(each) / max(each), "rounds": each} for name, each in rates.items()}


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return statistics.fmean(known) if known else None
