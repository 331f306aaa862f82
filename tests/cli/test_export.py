"""``densefeat export``: what it writes and says, and its errors."""

import re
import sys
from pathlib import Path

import pytest

from densefeat_cli.main import main
from helpers import BUNDLED


def densefeat(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["densefeat", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "network.onnx"
    assert densefeat(monkeypatch, "export", BUNDLED, "--to", "onnx", "--out", out, "--blocks", "1,2") == 0
    told = capsys.readouterr()
    assert told.err == ""  # no terminal, no progress bar, nothing of torch's exporter
    first, second, third = told.out.splitlines()
    assert first == f"wrote {out}: {BUNDLED}.tin200 (block1 batch×216, block2 batch×300)"
    assert second == "input: float32 batch×3×height×width, sizes: any, from 32 pixels; opset 18"
    assert re.search(
        r"largest difference .*: block1 \d\.\de-\d+, block2 \d\.\de-\d+ \(ONNX Runtime .*; images 1×32×32, 3×", third
    )


def test_progress_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert densefeat(monkeypatch, "export", BUNDLED, "--to", "safetensors", "--out", tmp_path / "a.safetensors") == 0
    told = capsys.readouterr().err
    assert "exporting" in told
    assert "4/4" in told


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((BUNDLED, "--to", "onnx", "--out", "a.pb"), 2, "densefeat: output 'a.pb': give a name that ends in .onnx\n"),
        (
            (BUNDLED, "--to", "onnx", "--out", "absent/a.onnx"),
            1,
            "densefeat: output 'absent/a.onnx' cannot be written: No such file or directory\n",
        ),
        ((BUNDLED, "--to", "hub-folder", "--out", "."), 2, "densefeat: output '.': give a name\n"),
        (
            ("densefeat_densenet264", "--to", "openvino", "--out", "a.xml"),
            1,
            "densefeat: densefeat_densenet264: nobody has published weights for it; use the bundled densefeat_densenet_bc100_k12, or a checkpoint file of your own (--weights FILE)\n",
        ),
    ],
)
def test_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert densefeat(monkeypatch, "export", *arguments) == code
    assert capsys.readouterr().err == message
    assert list(tmp_path.iterdir()) == []
