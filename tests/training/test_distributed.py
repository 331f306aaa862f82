"""Two processes under torchrun: the training of one process; signals, kills and damaged checkpoints."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from densefeat.training.checkpoints import _list_checkpoints
from densefeat.training.job import train
from support.runs import (
    FAST,
    LAUNCH,
    PROCESS_ENVIRONMENT,
    assert_same_training,
    newest_state,
    tiny_overrides,
    tiny_recipe,
    untimed,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")
EXACT = dict(precision="float64", freeze_norm=True, augment="cutout", lr=0.05, clip_grad=1.0, log_steps=1, warmup_epochs=0)
# with frozen norms the activations of fresh weights are huge, so the gradients are clipped


def launch_command(overrides: list[str], out: Path, *arguments: str, launch: tuple[str, ...] = ()) -> list[str]:
    return [
        *LAUNCH,
        *launch,
        "-m",
        "support.train_tiny",
        str(FAST),
        *overrides,
        "--out",
        str(out),
        "--device",
        "cpu",
        *arguments,
    ]


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        launch_command(*arguments, **options), capture_output=True, text=True, timeout=240, env=PROCESS_ENVIRONMENT
    )  # fmt: skip


def start(*arguments: Any, **options: Any) -> subprocess.Popen:
    return subprocess.Popen(
        launch_command(*arguments, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=PROCESS_ENVIRONMENT,
    )


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    overrides = tiny_overrides(tmp_path, **EXACT)
    ended = run(overrides, tmp_path / "two", "--steps", "5")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("stopped at step 5 of 8") == 1
    train(tiny_recipe(tmp_path, **EXACT), tmp_path / "one", "cpu", 5)
    one, two = newest_state(tmp_path / "one"), newest_state(tmp_path / "two")
    moved = max((one["model"][name] - weights).abs().max() for name, weights in initial_weights(tmp_path).items())
    assert moved > 1e-3
    for name, value in one["model"].items():
        assert (value - two["model"][name]).abs().max() < 1e-8, name
    for before, after in zip(untimed(tmp_path / "one"), untimed(tmp_path / "two"), strict=True):
        for name in ("event", "precision"):
            assert after.pop(name, None) == before.pop(name, None)
        assert after == pytest.approx(before, rel=1e-6)


def initial_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights before the first step."""
    train(tiny_recipe(folder, **EXACT | {"lr": 1e-30}), folder / "still", "cpu", 1)
    return newest_state(folder / "still")["model"]


@pytest.mark.slow  # World.sum adds scores, and ranks' shares are tested in test_data
def test_uneven_validation_is_exact(tmp_path: Path) -> None:
    ended = run(tiny_overrides(tmp_path, accumulation=2), tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["val"]["images"] == 21
    assert f"top-1 {results['val']['top1']:.2f} %" in ended.stdout
    one = train(tiny_recipe(tmp_path, accumulation=2), tmp_path / "run", "cpu")  # returns the results of the complete run
    assert one.scores == {"val": results["val"]}


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def find_workers(run: Path) -> list[int]:
    numbers = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            if str(run).encode() in line and b"\0RANK=" in environment:
                numbers.append(int(process.name))
    return numbers


def saved_steps(run: Path) -> int:
    names = [path.name for path in _list_checkpoints(run / "checkpoints")]
    return int(names[0].split("-")[1]) if names else 0


@pytest.fixture
def straight(tmp_path: Path) -> Path:
    """A run of two processes without interruptions."""
    ended = run(tiny_overrides(tmp_path, epochs=3, checkpoint_steps=1), tmp_path / "straight")
    assert ended.returncode == 0, ended.stderr
    return tmp_path / "straight"


@pytest.mark.slow
def test_a_run_that_is_killed_preempted_and_damaged_ends_the_same(tmp_path: Path, straight: Path) -> None:
    overrides, out = tiny_overrides(tmp_path, epochs=3, checkpoint_steps=1), tmp_path / "run"
    # torchrun restarts both processes when one is killed, and they resume by themselves
    process = start(overrides, out, launch=("--max-restarts=2",))
    wait_for(lambda: saved_steps(out) >= 5, process)
    os.kill(find_workers(out)[0], signal.SIGKILL)
    before = saved_steps(out)
    wait_for(lambda: saved_steps(out) >= before + 3, process)
    # preemption: torchrun forwards SIGTERM, and both stop after the same step
    process.send_signal(signal.SIGTERM)
    output = "".join(process.communicate(timeout=120))
    assert process.returncode != 0
    assert "stopped after step" in output
    assert "resuming from step" in output
    # the newest checkpoint is damaged
    newest, _ = _list_checkpoints(out / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    ended = run(overrides, out)
    assert ended.returncode == 0, ended.stderr
    assert f"{newest.name} is damaged" in ended.stderr
    assert_same_training(straight, out)


@pytest.mark.slow  # as SIGTERM above
def test_sigusr1_to_one_process_stops_both_after_a_checkpoint(tmp_path: Path) -> None:
    overrides, out = tiny_overrides(tmp_path, epochs=30), tmp_path / "run"
    process = start(overrides, out)
    wait_for(lambda: (out / "metrics.jsonl").exists(), process)
    os.kill(find_workers(out)[-1], signal.SIGUSR1)
    output = "".join(process.communicate(timeout=120))
    assert "the same command resumes the run" in output
    assert saved_steps(out) > 0
    assert saved_steps(out) == newest_state(out)["step"]
