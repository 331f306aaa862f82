"""A comparison: its plan, the workers that take turns round by round, and the numbers that follow from their seconds."""

import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from densefeat.base import choose_device, raise_on_sigterm, stop_on_signal
from densefeat.bench.arms import BASELINES, PRECISIONS, TUNED_ALLOCATOR, Arm, choose_arms
from densefeat.bench.builders import DTYPES, ArmUnderTest, Ceiling
from densefeat.bench.inputs import check_name, default_size, network_code, write_inputs
from densefeat.bench.machine import USABLE_CPUS, describe_machine, others_seconds
from densefeat.bench.measure import compare_rounds
from densefeat.bench.worker import Worker
from densefeat.errors import UsageError
from densefeat.features import count_traffic
from densefeat.nets import count_network_flops

_REST_SECONDS = 0.02  # between turns: threads that wait for more work give up first


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


def compare(plan: Plan, say: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
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
    with raise_on_sigterm(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="densefeat-bench-")))
        say("making weights, images and the expected features")
        inputs = write_inputs(folder, plan.model, plan.batch, plan.size, plan.images)
        workers: dict[Arm, Worker] = {}

        def build(subject: ArmUnderTest | Ceiling) -> Worker:
            with stop_on_signal() as request:  # a signal before the process is on the stack would leave it alone
                worker = Worker(Path(tempfile.mkdtemp(dir=folder)), subject)
                stack.callback(worker.stop)
            if request.signal is not None:
                signal.raise_signal(request.signal)
            worker.build()
            return worker

        for arm in plan.arms:
            say(f"building {arm.title(network_code(plan.model))}")
            workers[arm] = build(ArmUnderTest(arm, plan.model, inputs, plan.device, plan.steps))
        ceiling = []
        if any(worker.problem is None for worker in workers.values()):
            say("looking for the machine's largest rates")
            ceiling.append(build(Ceiling(plan.device, PRECISIONS[plan.precision])))
        load = os.getloadavg()[0]
        shares = _run_rounds([*workers.values(), *ceiling], plan.rounds, say)
    known = [share for share in shares if share is not None]
    busy = {"shares": shares, "share": statistics.fmean(known) if known else None, "load_before": load}
    rates = [turn["rates"] for worker in ceiling for turn in worker.turns]
    return _summarize(plan, workers, rates, inputs.rounding) | {"busy": busy}


def _run_rounds(workers: list[Worker], rounds: int, say: Callable[[str], object]) -> list[float | None]:
    """Let every worker take a turn each round, in an order that changes; return the share that others used of each round."""
    processes, shuffle = [os.getpid(), *(worker.process.pid for worker in workers)], random.Random(0).shuffle
    shares = []
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        shuffle(workers)
        began, before = time.perf_counter(), others_seconds(processes)
        for worker in workers:
            worker.take_turn()
            time.sleep(_REST_SECONDS)
        shares.append(_measure_other_load(before, others_seconds(processes), time.perf_counter() - began))
    return shares


def _measure_other_load(before: float | None, after: float | None, seconds: float) -> float | None:
    """The share of the processors' time that others used, 0 to 1, by two counts of :func:`others_seconds`."""
    if before is None or after is None:
        return None
    return min(1.0, max(0.0, (after - before) / (seconds * len(USABLE_CPUS))))


def _summarize(plan: Plan, workers: dict[Arm, Worker], rates: list[dict[str, float]], rounding: float) -> dict[str, Any]:
    network = timm.create_model(plan.model).eval()
    flops = {
        "plain": count_network_flops(network, plan.size),
        "pooled first": count_network_flops(network, plan.size, pool_first=True),
    }
    traffic = None
    if plan.device == "cuda":
        traffic = {name: count_traffic(network, plan.size, plan.size, dtype) for name, dtype in DTYPES.items()}
    work = {"flops": flops, "traffic_bytes": traffic, "ceiling": _summarize_ceiling(rates)}
    arms = [_summarize_arm(plan, arm, workers, work) for arm in workers]
    baselines = {arm["precision"]: arm["baseline"] for arm in arms if arm["problem"] is None}
    return {
        "model": plan.model, "network": network_code(plan.model), "batch": plan.batch, "size": plan.size,
        "device": plan.device, "precision": plan.precision, "rounds": plan.rounds,
        "images": str(plan.images) if plan.images else "noise", "rounding": rounding, **work,
        "baseline": next(iter(baselines.values()), None), "baselines": baselines,
        "arms": arms, "tuned_allocator": TUNED_ALLOCATOR, "machine": describe_machine(plan.device),
    }  # fmt: skip


def _summarize_ceiling(turns: list[dict[str, float]]) -> dict[str, Any]:
    """The largest of each rate, those of all rounds, and their spread: (largest − least) / largest."""
    rates = {name: [turn[name] for turn in turns] for name in (turns[0] if turns else ())}
    return {name: {"largest": max(each), "spread": 1 - min(each) / max(each), "rounds": each} for name, each in rates.items()}


def _summarize_arm(plan: Plan, arm: Arm, workers: dict[Arm, Worker], work: dict[str, Any]) -> dict[str, Any]:
    worker, title = workers[arm], arm.title(network_code(plan.model))
    summary: dict[str, Any] = {
        "name": arm.name, "title": title, "ours": arm.ours, "precision": arm.precision, "layout": arm.layout,
        "allocator": arm.allocator, "pools_first": arm.pools_first, "problem": worker.problem, **worker.summary,
    }  # fmt: skip
    if worker.problem is not None:
        return summary
    baseline = _find_baseline([other for other in workers if workers[other].problem is None], arm)
    seconds, steps = [turn["seconds"] for turn in worker.turns], worker.summary["steps"]
    calls = [each / steps for each in seconds]
    base = [turn["seconds"] / workers[baseline].summary["steps"] for turn in workers[baseline].turns]
    summary |= {
        "seconds": seconds, "peak_bytes": max(turn["peak_bytes"] for turn in worker.turns),
        "images_per_second": statistics.median(plan.batch / each for each in calls),
        "baseline": baseline.title(network_code(plan.model)), "ratio": compare_rounds(calls, base),
    }  # fmt: skip
    return summary | {"percent": _relate_to_ceiling(summary, work)}


def _find_baseline(measured: Sequence[Arm], own: Arm) -> Arm:
    """The arm of the same precision that ratios are to: the best eager timm, else the first that could be measured."""
    arms = {arm.name: arm for arm in measured if arm.precision == own.precision}
    return next(arms[name] for name in (*BASELINES, *arms) if name in arms)


def _relate_to_ceiling(arm: dict[str, Any], work: dict[str, Any]) -> dict[str, float]:
    """An arm's arithmetic in per cent of the largest rate; on a GPU also the least traffic, of the rate of a copy."""
    rates = {name.rpartition(" ")[0] or name: rate["largest"] for name, rate in work["ceiling"].items()}
    percent, speed = {}, 100 * arm["images_per_second"]
    if largest := rates.get(arm["precision"]):
        percent["arithmetic"] = speed * work["flops"]["pooled first" if arm["pools_first"] else "plain"] / largest
    if work["traffic_bytes"] and "copy" in rates:
        percent["traffic"] = speed * work["traffic_bytes"][arm["precision"]] / rates["copy"]
    return percent
