"""``densefeat bench`` in processes of its own: its table, its JSON, wrong use, and that nothing is left of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densefeat_cli.main import main
from support.helpers import BUNDLED

SMALL = ("--model", BUNDLED, "--batch", 2, "--device", "cpu", "--rounds", 2, "--steps", 1)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "densefeat_cli.main", "bench", *map(str, arguments)]


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, cwd=folder)


@pytest.mark.slow
def test_a_table_and_a_file(tmp_path: Path, photo_folder: Path) -> None:
    ended = run(*SMALL, "--arms", "hooks,reference", "--images", photo_folder, "--out", "speed.json", folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")  # no terminal, no progress
    head, _, columns, hooks, reference, *_, last = ended.stdout.splitlines()
    assert head.startswith(f"{BUNDLED}, batch 2, 32×32 pixels; ")
    assert columns.startswith("arm ")
    assert hooks.startswith("plain network, hooks that clone, NCHW, fp32 ")
    assert reference.startswith("densefeat reference, fp32 ")
    assert last.startswith("fastest backend here in fp32: reference, ")
    told = json.loads((tmp_path / "speed.json").read_text())
    assert [arm["name"] for arm in told["arms"]] == ["hooks", "reference"]
    assert all(arm["images_per_second"] > 0 for arm in told["arms"])
    assert told["images"] == str(photo_folder)


def test_help_ends_with_an_example(tmp_path: Path) -> None:
    assert "Example: densefeat bench" in run("--help", folder=tmp_path).stdout


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
def test_wrong_use_is_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["densefeat", "bench", "--device", "cpu", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (code, "")
    assert told.err.startswith(message)
    assert told.err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_no_arm_at_all_is_a_failure(tmp_path: Path) -> None:
    hidden = tmp_path / "path"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules.update(dict.fromkeys(['onnxruntime', 'onnx']))\n")
    ended = subprocess.run(
        command(*SMALL, "--arms", "onnxruntime"), capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(hidden)},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (1, "densefeat: no arm could be measured\n")
    assert "ONNX Runtime, fp32  not installed: onnx, onnxruntime\n" in ended.stdout


def children(process: int) -> set[int]:
    try:
        return {int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()}
    except OSError:
        return set()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("sent", "at", "code", "message"),
    [
        (signal.SIGTERM, 1, 143, "stopped by SIGTERM"),
        pytest.param(signal.SIGINT, 2, 130, "interrupted", marks=pytest.mark.slow),
    ],  # the second is the ceiling's
    ids=["SIGTERM while it builds", "Ctrl-C while it measures"],
)
def test_stopped_it_leaves_no_process_and_no_file(
    sent: signal.Signals, at: int, code: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        command(*SMALL, "--rounds", 100_000, "--arms", "hooks", "--out", tmp_path / "speed.json"),
        stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    end = time.monotonic() + 240
    while len(workers := children(process.pid)) < at:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(sent)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said.strip()) == (code, f"densefeat: {message}")
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    assert os.listdir(tmp_path) == ["temporary"]
    assert os.listdir(tmp_path / "temporary") == []
