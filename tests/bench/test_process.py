"""Workers as processes: what they answer, how they fail, and that none is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from densefeat.bench.arms import TUNED_ALLOCATOR, Arm
from densefeat.bench.networks import Inputs, write_inputs
from densefeat.bench.plan import make_plan
from densefeat.bench.process import Worker, WorkerFailed, environment
from densefeat.bench.rows import Crew, crew, wrong_features
from densefeat.bench.worker import farthest
from support.helpers import BUNDLED

HOOKS = Arm("hooks", "hooks")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("inputs"), BUNDLED, 2, 32, None)


@pytest.fixture
def arms(inputs: Inputs, tmp_path: Path) -> Iterator[Crew]:
    with crew(make_plan(BUNDLED, "hooks", device="cpu", batch=2, steps=1), inputs, tmp_path) as made:
        yield made


def gone(process: int) -> bool:
    """Ended, be it that nobody has waited for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_turns_tell_time_and_memory_until_the_system_ends_it(arms: Crew) -> None:
    arms.start_arm(HOOKS)
    (row,) = arms.rows
    assert row.problem is None
    assert row.told["difference"] < 1e-5
    assert min(row.told[f"{what}_seconds"] for what in ("build", "first_call", "third_call")) > 0
    row.take_turn()
    row.steps = 3
    row.take_turn()
    first, second = row.turns
    assert min(first["seconds"], second["seconds"]) > 0
    assert min(first["peak_bytes"], second["peak_bytes"]) > 1e6
    os.kill(row.worker.process.pid, signal.SIGKILL)
    row.take_turn()
    assert row.problem == "its process was ended by SIGKILL (out of memory?)"
    row.take_turn()  # is not asked again
    assert row.turns == [first, second]


def test_one_that_says_nothing_is_given_up(arms: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.bench.rows.REPLY_SECONDS", 0.1)  # its imports take longer
    arms.start_arm(HOOKS)
    (row,) = arms.rows
    assert row.problem == "no reply within 0.1 s"
    assert row.worker.process.returncode == -signal.SIGKILL


def test_features_that_are_no_numbers_are_a_problem() -> None:
    """Of the second block alone: Python's max would leave NaN out."""
    right = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    for broken in (float("nan"), float("inf")):
        wrong = right.clone()
        wrong[1, 2] = broken
        told = farthest([(right, right), (wrong, right), (right, right)])
        assert told["difference"] is None
        json.dumps(told, allow_nan=False)
        assert wrong_features(HOOKS, told, 0.0) == wrong_features(replace(HOOKS, precision="bf16"), told, 0.0)
        assert wrong_features(HOOKS, told, 0.0) == "wrong features: not finite"
    assert wrong_features(HOOKS, farthest([(right, right)]), 0.0) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "problem"),
    [
        (Arm("compile", "compile", mode="fastest"), "RuntimeError: Unrecognized mode=fastest"),
        (Arm("triton", "triton"), "backend 'triton': "),
    ],
)
def test_an_arm_that_cannot_be_built(arm: Arm, problem: str, arms: Crew) -> None:
    arms.start_arm(arm)
    (row,) = arms.rows
    assert str(row.problem).startswith(problem)
    assert row.worker.process.returncode is not None


@pytest.mark.slow
def test_a_package_that_is_absent(arms: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / "path"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules.update(dict.fromkeys(['onnxruntime', 'onnx']))\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    arms.start_arm(Arm("onnxruntime", "onnxruntime"))
    assert arms.rows[0].problem == "not installed: onnx, onnxruntime"


def test_wrong_features_get_no_turns(inputs: Inputs, tmp_path: Path, arms: Crew) -> None:
    (tmp_path / "other").mkdir()
    other = write_inputs(tmp_path / "other", BUNDLED, 2, 40, None)  # statistics of other noise
    arms.inputs = Inputs(
        inputs.files | {"expected": other.files["expected"]}, inputs.rows, inputs.taps_of_ours, inputs.taps_of_stages, 0.0
    )
    arms.start_arm(HOOKS)
    (single,) = arms.rows
    assert str(single.problem).startswith("wrong features: off by ")
    single.take_turn()
    assert single.turns == []


def test_what_ended_says_its_last_line(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "w")
    with pytest.raises(WorkerFailed, match="^KeyError: 'arm'"):
        worker.ask({})
    worker.process.kill()
    worker.process.wait()
    worker.log.write_text("something\nMemoryError\n")
    worker.process.returncode = 1
    with pytest.raises(WorkerFailed, match="^its process ended with 1: MemoryError$"):
        worker.ask({})
    worker.stop()


def test_what_it_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a compiler that still runs when the worker is stopped."""
    start = f"import subprocess, pathlib\npathlib.Path({str(tmp_path / 'child')!r}).write_text(str(subprocess.Popen(['sleep', '600']).pid))\n"
    (tmp_path / "sitecustomize.py").write_text(start)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(tmp_path / "w")
    wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
    child = int((tmp_path / "child").read_text())
    assert not gone(child)
    worker.stop()
    wait_until(lambda: gone(child))
    assert worker.process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_worker_whose_parent_is_killed_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from densefeat.bench.process import Worker\n"
        f"print(Worker(Path({str(tmp_path)!r}, 'w')).process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
        assert not gone(worker)
        parent.kill()
        parent.wait()
    wait_until(lambda: gone(worker))


def test_settings_of_the_allocator_are_the_arms_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    default, tuned = (environment(tmp_path, allocator) for allocator in ("default", "tuned"))
    assert not [key for key in default if key.startswith("MALLOC_")]
    assert {key: value for key, value in tuned.items() if key.startswith("MALLOC_")} == TUNED_ALLOCATOR
    assert default["OMP_NUM_THREADS"] == "1"
    assert default["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
