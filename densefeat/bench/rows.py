"""An arm of a comparison as it goes: its process, what it told, or its problem."""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from densefeat.base import stop_on_signal
from densefeat.bench.arms import PRECISIONS, Arm
from densefeat.bench.networks import Inputs
from densefeat.bench.plan import Plan
from densefeat.bench.process import REPLY_SECONDS, Worker, WorkerFailed

TURN_SECONDS = 0.5  # of an arm's turn, where the number of calls is ours to choose
MOST_STEPS = 500
TOLERANCE = 1e-5  # of fp32 features, or
ROUNDINGS = 4  # times as far as the plain network in float32
LEAST_COSINE = 0.99  # of bf16 features


@dataclass
class Row:
    """``arm`` None: the machine's largest rates. ``turns``: its replies, round by round."""

    arm: Arm | None
    worker: Worker
    told: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 1
    problem: str | None = None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Empty where the worker failed: the row then has the problem, and takes no more turns."""
        try:
            return self.worker.ask(request, seconds)
        except WorkerFailed as failure:
            self.give_up(str(failure))
            return {}

    def give_up(self, problem: str) -> None:
        self.problem = problem
        self.worker.stop()

    def take_turn(self) -> None:
        likely = self.steps * self.told.get("third_call_seconds", 0.0)
        if self.problem is None and (told := self.ask({"steps": self.steps}, REPLY_SECONDS + 10 * likely)):
            self.turns.append(told)


class Crew:
    """The rows of a plan; however it is left, their processes end."""

    def __init__(self, plan: Plan, inputs: Inputs, folder: Path) -> None:
        self.plan, self.inputs, self.folder = plan, inputs, folder
        self.rows: list[Row] = []

    @property
    def processes(self) -> list[int]:
        return [row.worker.process.pid for row in self.rows]

    def stop(self) -> None:
        for row in self.rows:
            row.worker.stop()

    def start_arm(self, arm: Arm) -> None:
        """Built, and its features right; else with its problem."""
        row = self._started(arm, f"{arm.name}-{arm.precision}", arm.allocator)
        taps = self.inputs.taps_of_ours if arm.ours else self.inputs.taps_of_stages
        asked = {"arm": asdict(arm), "model": self.plan.model, "device": self.plan.device, "taps": taps}
        row.told = row.ask(asked | {"rows": self.inputs.rows, **self.inputs.files}, REPLY_SECONDS)
        if row.told:
            row.steps = self.plan.steps or steps_of(row.told["third_call_seconds"])
            if problem := wrong_features(arm, row.told, self.inputs.rounding):
                row.give_up(problem)

    def start_ceiling(self) -> None:
        row = self._started(None, "ceiling", "default")
        row.ask({"arm": None, "device": self.plan.device, "precisions": PRECISIONS[self.plan.precision]}, REPLY_SECONDS)

    def _started(self, arm: Arm | None, folder: str, allocator: str) -> Row:
        with stop_on_signal() as asked:  # of a process half started nobody would know
            row = Row(arm, Worker(self.folder / folder, allocator))
            self.rows.append(row)
        if asked.signal is not None:
            signal.raise_signal(asked.signal)
        return row


@contextmanager
def crew(plan: Plan, inputs: Inputs, folder: Path) -> Iterator[Crew]:
    made = Crew(plan, inputs, folder)
    try:
        yield made
    finally:
        made.stop()


def steps_of(call_seconds: float) -> int:
    return min(MOST_STEPS, math.ceil(TURN_SECONDS / call_seconds))


def wrong_features(arm: Arm, told: dict[str, Any], rounding: float) -> str | None:
    """``rounding``: how far float32 itself takes the plain network; as deep as DelugeNets are, beyond the tolerance."""
    if told["difference"] is None or told["cosine"] is None:
        return "wrong features: not finite"
    if arm.precision == "fp32" and not told["difference"] <= max(TOLERANCE, ROUNDINGS * rounding):
        return f"wrong features: off by {told['difference']:.1e}"
    if arm.precision == "bf16" and not told["cosine"] >= LEAST_COSINE:
        return f"wrong features: cosine {told['cosine']:.4f}"
    return None
