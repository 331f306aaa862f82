"""A comparison: workers started one after the other, then asked in turn, round by round."""

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from densefeat.base import Interrupted
from densefeat.bench.machine import Used, others_share, used
from densefeat.bench.networks import network_code, write_inputs
from densefeat.bench.plan import Plan
from densefeat.bench.rows import Crew, crew
from densefeat.bench.summary import summary

REST_SECONDS = 0.02  # between turns: threads that wait for more work give up first

Say = Callable[[str], None]


def compare(plan: Plan, say: Say = lambda _: None) -> dict[str, Any]:
    """Measure every arm of the plan in a process of its own; one that fails costs its row.

    Args:
        say: Is told what is being done.

    Returns:
        What :func:`densefeat.bench.summary.summary` makes of it.

    Raises:
        UsageError: A model that is not ours, no image in the folder, or one that the plain network makes no numbers of.
        Interrupted: SIGTERM, where that was left to end the process; a KeyboardInterrupt. Nothing is left behind.
    """
    with raised_on_sigterm(), tempfile.TemporaryDirectory(prefix="densefeat-bench-") as temporary:
        say("making weights, images and the features to expect")
        inputs = write_inputs(Path(temporary), plan.model, plan.batch, plan.size, plan.images)
        with crew(plan, inputs, Path(temporary)) as arms:
            for arm in plan.arms:
                say(f"building {arm.title(network_code(plan.model))}")
                arms.start_arm(arm)
            if any(row.problem is None for row in arms.rows):
                say("looking for the machine's largest rates")
                arms.start_ceiling()
            load = os.getloadavg()[0]
            shares = run_rounds(arms, say)
            return summary(plan, arms.rows, shares, load, inputs.rounding)


@contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """As Ctrl-C is, so that processes and files go too. Only the main thread may set handlers."""
    free = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not free:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would end the cleaning up
    raise Interrupted("interrupted", 128 + number)


def run_rounds(arms: Crew, say: Say) -> list[float | None]:
    """Every row's turns, in an order that changes; for each round, what others used of the machine's time."""
    order = list(arms.rows)
    shuffle = random.Random(0).shuffle
    shares = []
    for i in range(arms.plan.rounds):
        say(f"round {i + 1} of {arms.plan.rounds}")
        shuffle(order)
        before = now_used(arms)
        for row in order:
            row.take_turn()
            time.sleep(REST_SECONDS)
        shares.append(others_share(before, now_used(arms)))
    return shares


def now_used(arms: Crew) -> Used | None:
    return used([os.getpid(), *arms.processes])
