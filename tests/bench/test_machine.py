"""What the machine is, and the share of it that other processes used."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from densefeat.bench.machine import (
    CpuTime,
    _process_seconds,
    _usable_cpus,
    describe_machine,
    format_machine,
    read_cpu_time,
    share_of_others,
)


@pytest.fixture
def one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def busy(one_processor: None) -> Iterator[int]:
    """The id of a process that computes on the only processor that this process may use."""
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        yield process.pid
        process.kill()
        process.wait()


def test_a_busy_process_counts_unless_it_is_ours(busy: int) -> None:
    assert len(_usable_cpus()) == 1
    befores = [read_cpu_time([os.getpid()]), read_cpu_time([os.getpid(), busy])]
    own = _process_seconds(busy)
    time.sleep(1)
    afters = [read_cpu_time([os.getpid()]), read_cpu_time([os.getpid(), busy])]
    of_busy = (_process_seconds(busy) - own) / (afters[0].at - befores[0].at)
    not_ours, ours = (share_of_others(before, after) for before, after in zip(befores, afters, strict=True))
    assert not_ours > 0.8
    assert not_ours - ours == pytest.approx(of_busy, abs=0.1)


def test_a_share_without_counters_is_none() -> None:
    some = CpuTime(1.0, 1.0, 1.0)
    assert share_of_others(None, some) is share_of_others(some, None) is share_of_others(some, some) is None


def test_shares_are_between_0_and_1() -> None:
    before, width = CpuTime(0.0, 0.0, 0.0), len(_usable_cpus())
    assert share_of_others(before, CpuTime(2.0, 2.0 * width, 1.0 * width)) == 0.5
    assert share_of_others(before, CpuTime(2.0, 0.0, 1.0)) == 0  # the counters are rounded
    assert share_of_others(before, CpuTime(1.0, 2.0 * width, 0.0)) == 1


def test_a_process_that_is_gone_counts_as_zero() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert _process_seconds(process.pid) == 0


def test_the_record_names_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["variables"]["OMP_WAIT_POLICY"] == "passive"
    assert {"torch", "timm", "densefeat"} <= machine["versions"].keys()
    assert format_machine(machine).startswith(f"{machine['cpu']}, {machine['threads']} threads (")
    assert format_machine(machine | {"gpu": "a GPU"}).startswith("a GPU; torch ")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads flags from /proc")
def test_instruction_sets_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = Path("/proc/cpuinfo").read_text()
    for flag, name in (("avx2", "AVX2"), ("avx512_vnni", "VNNI"), ("amx_bf16", "AMX-BF16"), ("asimd", "NEON")):
        assert (name in describe_machine()["instruction_sets"]) == (f" {flag} " in flags)
    monkeypatch.setattr("densefeat.bench.machine._cpu_field", lambda *_: "")
    assert describe_machine()["instruction_sets"] == [torch.backends.cpu.get_cpu_capability()]
