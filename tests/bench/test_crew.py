"""Workers as processes: their replies, how they fail, and that none is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from densefeat.bench.arms import TUNED_ALLOCATOR, Arm
from densefeat.bench.crew import Crew, Member, WorkerFailed, _check_features, _choose_steps, _make_environment
from densefeat.bench.inputs import write_inputs
from densefeat.bench.worker import _compare_features
from support.helpers import BUNDLED

HOOKS = Arm("hooks", "hooks")
RIGHT = {"difference": 1e-7, "cosine": 1.0, "third_call_seconds": 0.1}


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with Crew(tmp_path) as members:
        yield members


def start_script(crew: Crew, monkeypatch: pytest.MonkeyPatch, code: str) -> Member:
    """Start a worker that runs ``code`` instead of densefeat's own, which imports torch."""
    monkeypatch.setattr("densefeat.bench.crew._COMMAND", [sys.executable, "-c", code])
    return crew.start(HOOKS)


def reply_with(summary: dict[str, Any]) -> str:
    return f"import json\nwhile input(): print(json.dumps({summary!r}), flush=True)"


def has_ended(process: int) -> bool:
    """Whether a process ended, even if its parent has not waited for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_arm_reports_time_and_memory_until_its_process_ends(crew: Crew, tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    inputs = write_inputs(tmp_path / "inputs", BUNDLED, 2, 32, None)
    request = {"arm": asdict(HOOKS), "model": BUNDLED, "device": "cpu", "taps": inputs.taps_of_stages, "rows": inputs.rows}
    member = crew.start(HOOKS)
    member.build(request | inputs.files, 1, inputs.rounding)
    assert member.problem is None
    assert member.summary["difference"] < 1e-5
    assert min(member.summary[f"{what}_seconds"] for what in ("build", "first_call", "third_call")) > 0
    member.take_turn()
    (turn,) = member.turns
    assert turn["seconds"] > 0
    assert turn["peak_bytes"] > 1e6
    os.kill(member.worker.process.pid, signal.SIGKILL)
    member.take_turn()
    assert member.problem == "its process was ended by SIGKILL (out of memory?)"
    member.take_turn()  # sends nothing
    assert member.turns == [turn]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "problem"),
    [
        (Arm("compile", "compile", mode="fastest"), "RuntimeError: Unrecognized mode=fastest"),
        (Arm("triton", "triton"), "backend 'triton': "),
        (Arm("onnxruntime", "onnxruntime"), "not installed: onnx, onnxruntime"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_arm_that_cannot_be_built(
    arm: Arm, problem: str, crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("inputs", "path"):
        (tmp_path / name).mkdir()
    (tmp_path / "path/sitecustomize.py").write_text("import sys\nsys.modules.update(dict.fromkeys(['onnxruntime', 'onnx']))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    inputs = write_inputs(tmp_path / "inputs", BUNDLED, 2, 32, None)
    member = crew.start(arm)
    request = {"arm": asdict(arm), "model": BUNDLED, "device": "cpu", "taps": inputs.taps_of_ours, "rows": inputs.rows}
    member.build(request | inputs.files, 1, inputs.rounding)
    assert str(member.problem).startswith(problem)
    assert member.worker.process.returncode is not None


def test_a_worker_that_does_not_reply_is_given_up(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.bench.crew._REPLY_SECONDS", 0.1)
    member = start_script(crew, monkeypatch, "import time; time.sleep(600)")
    member.build({}, 1, 0.0)
    assert member.problem == "no reply within 0.1 s"
    assert member.worker.process.returncode == -signal.SIGKILL


def test_wrong_features_get_no_turns(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    member = start_script(crew, monkeypatch, reply_with(RIGHT | {"difference": 0.1}))
    member.build({}, None, 0.0)
    assert member.problem == "wrong features: off by 1.0e-01"
    member.take_turn()
    assert member.turns == []


def test_a_turn_without_a_number_of_calls_takes_half_a_second(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    member = start_script(crew, monkeypatch, reply_with(RIGHT))
    member.build({}, None, 0.0)
    assert (member.problem, member.steps) == (None, 5)


@pytest.mark.parametrize(("call_seconds", "steps"), [(0.1, 5), (0.3, 2), (7.0, 1), (1e-9, 500)])
def test_steps_fill_half_a_second(call_seconds: float, steps: int) -> None:
    assert _choose_steps(call_seconds) == steps


def test_features_that_are_not_finite_are_wrong() -> None:
    """Only in the second block: Python's max would ignore NaN."""
    right = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    for broken in (float("nan"), float("inf")):
        wrong = right.clone()
        wrong[1, 2] = broken
        summary = _compare_features([(right, right), (wrong, right), (right, right)])
        assert summary["difference"] is None
        json.dumps(summary, allow_nan=False)
        for precision in ("fp32", "bf16"):
            assert _check_features(precision, summary, 0.0) == "wrong features: not finite"
    assert _check_features("fp32", _compare_features([(right, right)]), 0.0) is None


@pytest.mark.parametrize(
    ("precision", "change", "rounding", "problem"),
    [
        ("fp32", {"difference": 2e-5}, 0.0, "wrong features: off by 2.0e-05"),
        ("fp32", {"difference": 2e-5}, 1e-5, None),  # float32 itself is that far off
        ("bf16", {"cosine": 0.98}, 0.0, "wrong features: cosine 0.9800"),
        ("bf16", {"difference": 0.1}, 0.0, None),
    ],
)
def test_tolerances(precision: str, change: dict[str, float], rounding: float, problem: str | None) -> None:
    assert _check_features(precision, RIGHT | change, rounding) == problem


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise MemoryError", "^its process ended with 1: MemoryError$"),
        ("raise SystemExit(3)", "^its process ended with 3: no message$"),
        ('print(\'{"problem": "none left"}\', flush=True); input()', "^none left$"),
    ],
)
def test_failures_have_a_message(code: str, message: str, crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    member = start_script(crew, monkeypatch, code)
    with pytest.raises(WorkerFailed, match=message):
        member.worker.ask({})


def test_what_a_worker_started_ends_with_it(crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler, say, that still runs when the worker is stopped."""
    file = tmp_path / "child"
    code = f"import subprocess, pathlib, time; child = subprocess.Popen(['sleep', '600'])\npathlib.Path({str(file)!r}).write_text(str(child.pid)); time.sleep(600)"
    worker = start_script(crew, monkeypatch, code).worker
    wait_until(lambda: file.exists() and file.read_text())
    child = int(file.read_text())
    assert not has_ended(child)
    worker.stop()
    wait_until(lambda: has_ended(child))
    assert worker.process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from densefeat.bench.crew import Worker\n"
        f"print(Worker(Path({str(tmp_path)!r}, 'w')).process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
        assert not has_ended(worker)
        parent.kill()
        parent.wait()
    wait_until(lambda: has_ended(worker))


def test_an_arm_has_its_own_allocator_settings_and_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    default, tuned = (_make_environment(tmp_path, allocator) for allocator in ("default", "tuned"))
    assert not [key for key in default if key.startswith("MALLOC_")]
    assert {key: value for key, value in tuned.items() if key.startswith("MALLOC_")} == TUNED_ALLOCATOR
    assert default["OMP_NUM_THREADS"] == "1"
    assert default["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
