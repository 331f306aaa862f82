"""``densefeat export``: what it writes and prints, and its errors."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.commands import run_command
from support.helpers import BUNDLED
from support.tiny_net import TINY, write_tiny_weights


def test_what_it_prints(tmp_path: Path) -> None:
    out, weights = tmp_path / "network.onnx", write_tiny_weights(tmp_path)
    command = ("export", TINY, "--weights", weights, "--to", "onnx", "--out", out, "--blocks", "1,2")
    finished = run_command(*command, check=True)
    assert finished.stderr == ""  # no terminal, no progress bar, nothing of torch's exporter
    first, second, third = finished.stdout.splitlines()
    assert first == f"wrote {out}: {TINY} (block1 batch×24, block2 batch×24)"
    assert second == "input: float32 batch×3×height×width, sizes: any, from 32 pixels; opset 18"
    assert re.search(
        r"largest difference from the plain network given the same pixels, .*: block1 \d\.\de-\d+, block2 \d\.\de-\d+ \(ONNX Runtime .*; images 1×32×32, 3×",
        third,
    )


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    command = ("export", BUNDLED, "--to", "safetensors", "--out", tmp_path / "a.safetensors")
    finished = run_command(*command, env={"TTY_COMPATIBLE": "1"}, check=True)
    assert "exporting" in finished.stderr
    assert "4/4" in finished.stderr


@pytest.mark.slow
def test_after_sigterm_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "densefeat", "export", BUNDLED, "--to", "openvino", "--out", "network.xml"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.iterdir()):  # the hidden folder, made before the work
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.communicate()[1].strip() == "densefeat: stopped by SIGTERM"  # after click's own end of line
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays(folder: Path) -> None:
    (folder / "a.onnx").write_text("mine")
    finished = run_command("export", BUNDLED, "--to", "onnx", "--out", "a.onnx")
    assert finished == (2, "", "densefeat: output 'a.onnx' exists: remove it or give another name\n")
    assert (folder / "a.onnx").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((BUNDLED, "--to", "onnx", "--out", "a.pb"), 2, "densefeat: output 'a.pb': give a name that ends in .onnx\n"),
        (
            (BUNDLED, "--to", "onnx", "--out", "absent/a.onnx"),
            2,
            "densefeat: output 'absent/a.onnx': there is no folder 'absent': make it first\n",
        ),
        ((BUNDLED, "--to", "hub-folder", "--out", "."), 2, "densefeat: output '.': give a name\n"),
        (
            ("densefeat_densenet264", "--to", "openvino", "--out", "a.xml"),
            1,
            "densefeat: densefeat_densenet264: nobody has published weights for it; use the bundled densefeat_densenet_bc100_k12, or a checkpoint file of your own (--weights FILE)\n",
        ),
    ],
)
def test_errors(folder: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    assert run_command("export", *arguments) == (code, "", message)
    assert list(folder.iterdir()) == []
