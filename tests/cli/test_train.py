"""``densefeat train``: what it prints, and its errors."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.commands import run_command
from support.helpers import BUNDLED
from support.runs import tiny_overrides


def test_train_resume_and_evaluate(folder: Path) -> None:
    overrides = tiny_overrides(folder, epochs=0.5)
    finished = run_command("train", "cifar10_fast", *overrides, "--device", "cpu", "--steps", 2, check=True)
    assert finished.stdout.startswith("runs/cifar10_fast: stopped at step 2 of 4; the same command ")
    finished = run_command("train", "cifar10_fast", *overrides, "--device", "cpu", check=True)
    assert "from step 2" in finished.stderr
    first, second, *remark = finished.stdout.splitlines()  # four steps may teach nothing
    assert first == "runs/cifar10_fast: 4 steps; weights in runs/cifar10_fast/model.safetensors"
    assert second.startswith("val: 21 images, top-1 ")
    assert all("no better than always answering" in line for line in remark)
    scores = json.loads((folder / "runs/cifar10_fast/results.json").read_text())["val"]
    evaluation = ["runs/cifar10_fast", "--data", "val.parquet", "--json", "e.json", "--image-size", 32]
    run_command("evaluate", *evaluation, check=True)
    assert json.loads((folder / "e.json").read_text())["images"] == scores["images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar10_fats"], "unknown recipe 'cifar10_fats': did you mean cifar10_fast"),
        (["cifar10_fast", "epoch=3"], "in 'epoch=3': unknown key 'epoch': did you mean 'epochs'?"),
        (["cifar10_fast", "lr=fast"], "in 'lr=fast': lr 'fast': give a valid number"),
        (["cifar10_fast", "train=nowhere", "--device", "cpu", "cuda_graph=false"], "no such folder or file"),
        (["cifar10_fast", "--minutes", "0"], "0.0 is not in the range x>0"),
        (["cifar10_fast", "--device", "tpu"], "device 'tpu': no such kind of device"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(folder: Path, arguments: list[str], message: str) -> None:
    finished = run_command("train", *arguments)
    assert finished.exit_code == 2
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


def restore_ctrl_c() -> None:
    """Take Ctrl-C again: a background job of a shell, which this test may be, ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_saves_a_checkpoint(tmp_path: Path) -> None:
    overrides = tiny_overrides(tmp_path, epochs=200, model=BUNDLED)
    command = [sys.executable, "-m", "densefeat", "train", "cifar10_fast", *overrides, "--device", "cpu", "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=restore_ctrl_c) as process:
        while not (tmp_path / "run/metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("densefeat: stopped after step ")
    assert len(list((tmp_path / "run/checkpoints").glob("*.pt"))) == 1
