"""`densefeat train` as a process: what a person sees, and what a typing mistake costs."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.runs import tiny_overrides


def densefeat(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "densefeat", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_train_continue_and_evaluate(tmp_path: Path) -> None:
    overrides = tiny_overrides(tmp_path, epochs=0.5)
    ended = densefeat("train", "cifar10_fast", *overrides, "--device", "cpu", "--steps", 2, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "runs/cifar10_fast: stopped at step 2 of 4; the same command goes on from there\n"
    ended = densefeat("train", "cifar10_fast", *overrides, "--device", "cpu", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "going on from step 2" in ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == "runs/cifar10_fast: 4 steps; weights in runs/cifar10_fast/model.safetensors"
    assert second.startswith("val: 21 images, top-1 ")
    scores = json.loads((tmp_path / "runs/cifar10_fast/results.json").read_text())["val"]
    evaluated = densefeat(
        "evaluate", "runs/cifar10_fast", "--data", "val.parquet", "--json", "e.json", "--image-size", 32, cwd=tmp_path
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((tmp_path / "e.json").read_text())["images"] == scores["images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar10_fats"], "unknown recipe 'cifar10_fats': did you mean cifar10_fast"),
        (["cifar10_fast", "epoch=3"], "in 'epoch=3': unknown key 'epoch': did you mean 'epochs'?"),
        (["cifar10_fast", "lr=fast"], "in 'lr=fast': lr 'fast': give a valid number"),
        (["cifar10_fast", "train=nowhere", "--device", "cpu", "cuda_graph=false"], "no such folder or file"),
        (["cifar10_fast", "--device", "tpu"], "device 'tpu': no such kind of device"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = densefeat("train", *arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def hear_ctrl_c() -> None:
    """A background job of a shell, as this test may be one, does not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_saves_a_checkpoint(tmp_path: Path) -> None:
    overrides = tiny_overrides(tmp_path, epochs=200)
    command = [
        sys.executable,
        "-m",
        "densefeat",
        "train",
        "cifar10_fast",
        *overrides,
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c) as process:
        while not (tmp_path / "run/metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("densefeat: stopped after step ")
    assert len(list((tmp_path / "run/checkpoints").glob("*.pt"))) == 1
