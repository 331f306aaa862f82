"""The parent's side of the workers: their processes, their replies round by round, and their problems."""

import json
import math
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densefeat.base import stop_on_signal
from densefeat.bench.arms import TUNED_ALLOCATOR, Arm

_COMMAND = [sys.executable, "-m", "densefeat.bench.worker"]
_REPLY_SECONDS = 15 * 60.0  # compilers take minutes to build an arm
_TURN_SECONDS = 0.5  # of an arm's turn, where the number of calls is not set
_MOST_STEPS = 500
_TOLERANCE = 1e-5  # of fp32 features, or
_ROUNDINGS = 4  # times as far as the plain network in float32: DelugeNets are so deep that this is more
_LEAST_COSINE = 0.99  # of bf16 features
# empty caches, so that a first call finds nothing that an earlier run compiled
_CACHES = {"XDG_CACHE_HOME": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


class WorkerFailed(Exception):
    """A worker ended, took too long, or could not do what was requested; the message is a row of the table."""


class Worker:
    """A process in a session of its own: Ctrl-C at a terminal does not reach it, and to stop it ends what it started.

    Args:
        folder: For its log and its caches; for this worker alone.
        allocator: ``"default"`` or ``"tuned"``: glibc reads its settings when a process starts.
    """

    def __init__(self, folder: Path, allocator: str = "default") -> None:
        folder.mkdir()
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=_make_environment(folder, allocator), start_new_session=True,
            )  # fmt: skip

    def ask(self, request: dict[str, Any], seconds: float = _REPLY_SECONDS) -> dict[str, Any]:
        """Send a request and return the reply.

        Raises WorkerFailed where the reply is a problem, the process ended, or no reply came in so many seconds.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise WorkerFailed(f"no reply within {seconds:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise WorkerFailed(self._describe_end())
        reply = json.loads(line)
        if "problem" in reply:
            raise WorkerFailed(reply["problem"])
        return reply

    def _describe_end(self) -> str:
        code = self.process.wait()
        if code < 0:
            likely = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-code).name}{likely}"
        last = (self.log.read_text(errors="replace").strip() or "no message").splitlines()[-1]
        return f"its process ended with {code}: {last}"

    def stop(self) -> None:
        """End the process and all that it started, and wait for it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self.process.wait()


def _make_environment(folder: Path, allocator: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    settings = TUNED_ALLOCATOR if allocator == "tuned" else {}
    return inherited | settings | {key: str(folder / name) for key, name in _CACHES.items()}


@dataclass
class Member:
    """A worker, its replies, and its problem if it has one; then it takes no more turns.

    ``arm`` is None for the machine's largest rates; ``summary`` is the reply to the first request, ``turns`` are the others.
    """

    arm: Arm | None
    worker: Worker
    summary: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 1
    problem: str | None = None

    def build(self, request: dict[str, Any], steps: int | None, rounding: float) -> None:
        """Build the arm and check its features. ``steps``: calls a turn; None for about half a second's."""
        self.summary = self._ask(request, _REPLY_SECONDS)
        if self.summary and self.arm is not None:
            self.steps = steps or _choose_steps(self.summary["third_call_seconds"])
            if problem := _check_features(self.arm.precision, self.summary, rounding):
                self._give_up(problem)

    def take_turn(self) -> None:
        expected = self.steps * self.summary.get("third_call_seconds", 0.0)
        if self.problem is None and (reply := self._ask({"steps": self.steps}, _REPLY_SECONDS + 10 * expected)):
            self.turns.append(reply)

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            return self.worker.ask(request, seconds)
        except WorkerFailed as failure:
            self._give_up(str(failure))
            return {}

    def _give_up(self, problem: str) -> None:
        self.problem = problem
        self.worker.stop()


class Crew:
    """The members of a comparison; at the end of the ``with`` block their processes end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.worker.stop()

    @property
    def processes(self) -> list[int]:
        return [member.worker.process.pid for member in self.members]

    def start(self, arm: Arm | None) -> Member:
        folder, allocator = ("ceiling", "default") if arm is None else (f"{arm.name}-{arm.precision}", arm.allocator)
        with stop_on_signal() as request:  # a signal between the process's start and its place in the list would leave it alone
            member = Member(arm, Worker(self.folder / folder, allocator))
            self.members.append(member)
        if request.signal is not None:
            signal.raise_signal(request.signal)
        return member


def _choose_steps(call_seconds: float) -> int:
    return min(_MOST_STEPS, math.ceil(_TURN_SECONDS / call_seconds))


def _check_features(precision: str, summary: dict[str, Any], rounding: float) -> str | None:
    """Return what is wrong with an arm's features; ``rounding``: the distance that float32 itself causes."""
    if summary["difference"] is None or summary["cosine"] is None:
        return "wrong features: not finite"
    if precision == "fp32" and not summary["difference"] <= max(_TOLERANCE, _ROUNDINGS * rounding):
        return f"wrong features: off by {summary['difference']:.1e}"
    if precision == "bf16" and not summary["cosine"] >= _LEAST_COSINE:
        return f"wrong features: cosine {summary['cosine']:.4f}"
    return None
