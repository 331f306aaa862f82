"""Whether others used the machine; what it is."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from densefeat.bench.machine import Used, cpus, described, others_share, process_seconds, used


@pytest.fixture
def one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def busy(one_processor: None) -> Iterator[int]:
    """A process that computes on the one processor that this one may run on; its id."""
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        yield process.pid
        process.kill()
        process.wait()


def test_a_busy_process_of_others_is_noticed_and_one_of_ours_is_not(busy: int) -> None:
    assert len(cpus()) == 1
    befores = [used([os.getpid()]), used([os.getpid(), busy])]
    own = process_seconds(busy)
    time.sleep(1)
    afters = [used([os.getpid()]), used([os.getpid(), busy])]
    of_busy = (process_seconds(busy) - own) / (afters[0].at - befores[0].at)
    not_ours, ours = (others_share(before, after) for before, after in zip(befores, afters, strict=True))
    assert not_ours > 0.8
    assert not_ours - ours == pytest.approx(of_busy, abs=0.1)


def test_what_cannot_be_told_is_none() -> None:
    some = Used(1.0, 1.0, 1.0)
    assert others_share(None, some) is others_share(some, None) is others_share(some, some) is None


def test_shares_are_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    before, width = Used(0.0, 0.0, 0.0), len(cpus())
    assert others_share(before, Used(2.0, 2.0 * width, 1.0 * width)) == 0.5
    assert others_share(before, Used(2.0, 0.0, 1.0)) == 0  # ticks round
    assert others_share(before, Used(1.0, 2.0 * width, 0.0)) == 1


def test_a_process_that_is_gone_used_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert process_seconds(process.pid) == 0


def test_the_record_names_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    told = described("cpu")
    assert told["cpu"]
    assert told["variables"]["OMP_WAIT_POLICY"] == "passive"
    assert {"torch", "timm", "densefeat"} <= told["versions"].keys()
