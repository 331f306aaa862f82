"""``densefeat bench``: its table, its JSON, wrong use, and that nothing is left when it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.commands import run_command
from support.helpers import BUNDLED

SMALL = ("--model", BUNDLED, "--batch", 2, "--device", "cpu", "--rounds", 2, "--steps", 1)


@pytest.mark.slow
def test_a_table_and_a_file(tmp_path: Path, photo_folder: Path) -> None:
    arguments = ("--arms", "timm-nhwc-tuned,reference", "--images", photo_folder, "--precision", "both", "--out", "speed.json")
    finished = run_command("bench", *SMALL, *arguments, cwd=tmp_path)
    assert (finished.exit_code, finished.stderr) == (0, "")  # no terminal, no progress
    head, _, columns, plain, reference, *_, fastest, pays = finished.stdout.splitlines()
    assert head.startswith(f"{BUNDLED}, batch 2, 32×32 pixels; ")
    assert columns.startswith("arm ")
    assert plain.startswith("plain network eager, channels_last, tuned allocator, fp32 ")
    assert reference.startswith("densefeat reference, fp32 ")
    assert fastest.startswith("fastest backend here in bf16: reference, ")
    assert pays.startswith("precision that pays here: ")
    comparison = json.loads((tmp_path / "speed.json").read_text())
    assert [arm["name"] for arm in comparison["arms"]] == ["timm-nhwc-tuned", "reference"] * 2
    assert all(arm["images_per_second"] > 0 for arm in comparison["arms"])
    assert [arm["ratio"]["median"] == 1 for arm in comparison["arms"]] == [True, False] * 2  # within a precision
    assert comparison["images"] == str(photo_folder)


def test_help_ends_with_an_example() -> None:
    assert "Example: densefeat bench" in run_command("bench", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "resnet50"], 2, "densefeat: model 'resnet50': engines are for densefeat_densenet121, "),
        (["--arms", "fastest"], 2, "densefeat: arm 'fastest': on cpu choose quick, ours, all, or some of timm-nchw, "),
        (["--arms", "hooks", "--precision", "bf16"], 2, "densefeat: arms 'hooks': none of them runs in bf16 on cpu"),
        (["--precision", "fp16"], 2, "densefeat: Invalid value for '--precision': 'fp16' is not"),
        (["--batch", "0"], 2, "densefeat: Invalid value for '--batch': 0 is not"),
        (["--size", "16"], 2, "densefeat: Invalid value for '--size': 16 is not"),
        (["--rounds", "0"], 2, "densefeat: Invalid value for '--rounds'"),
        (["--steps", "0"], 2, "densefeat: Invalid value for '--steps'"),
        (["--images", "nowhere"], 2, "densefeat: Invalid value for '--images': Directory 'nowhere' does not exist"),
        (["--images", "."], 2, "densefeat: images '.': no image file there"),
        (["--device", "tpu"], 2, "densefeat: Invalid value for '--device': 'tpu' is not"),
        (["--out", "no/speed.json"], 1, "densefeat: output 'no/speed.json' cannot be written: No such"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    finished = run_command("bench", "--device", "cpu", *arguments, cwd=tmp_path)
    assert (finished.exit_code, finished.stdout) == (code, "")
    assert finished.stderr.startswith(message)
    assert finished.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_no_arm_at_all_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that end at once, as where memory is short."""
    monkeypatch.setattr("densefeat.bench.worker._COMMAND", [sys.executable, "-c", "raise MemoryError"])
    finished = run_command("bench", *SMALL, "--arms", "hooks")
    assert (finished.exit_code, finished.stderr) == (1, "densefeat: no arm could be measured\n")
    assert "plain network, hooks that clone, NCHW, fp32  its process ended with 1: MemoryError\n" in finished.stdout


def list_children(process: int) -> set[int]:
    try:
        return {int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()}
    except OSError:
        return set()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("number", "at", "code", "message"),
    [
        (signal.SIGTERM, 1, 143, "densefeat: stopped by SIGTERM"),
        pytest.param(signal.SIGINT, 2, 130, "densefeat: interrupted", marks=pytest.mark.slow),  # the second is the ceiling's
    ],
    ids=["SIGTERM while it builds", "Ctrl-C while it measures"],
)
def test_stopped_it_leaves_no_process_and_no_file(
    number: signal.Signals, at: int, code: int, message: str, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = (*SMALL, "--rounds", 100_000, "--arms", "hooks", "--out", tmp_path / "speed.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "densefeat", "bench", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    end = time.monotonic() + 240
    # torch has children, too, for a moment, when it is imported: each worker has a folder
    while len(list(temporary.glob("densefeat-bench-*/*/"))) < at or len(workers := list_children(process.pid)) < at:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.strip()) == (code, message)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    assert os.listdir(tmp_path) == ["temporary"]
    assert os.listdir(temporary) == []
