"""``densefeat convert``: what it writes and prints, and its errors."""

from pathlib import Path

import numpy as np
import pytest

from support.commands import run_command
from support.stores import write_store


def test_blocks_by_number(tmp_path: Path) -> None:
    features = write_store(tmp_path / "s", shapes={"block1": (2,), "block2": (3,), "block3": (2, 4, 5)})
    finished = run_command("convert", tmp_path / "s", "--to", "npy", "--out", tmp_path / "a", "--blocks", "1,3", check=True)
    assert finished.stdout == f"wrote {tmp_path}/a: 30 rows (block1 2, block3 2×4×5)\n"
    assert finished.stderr == ""  # no terminal, no progress bar
    assert sorted(path.name for path in (tmp_path / "a").glob("*.npy")) == ["block1.npy", "block3.npy"]
    assert np.array_equal(np.load(tmp_path / "a/block3.npy"), features["block3"])


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    write_store(tmp_path / "s")
    terminal = {"TTY_COMPATIBLE": "1"}
    finished = run_command("convert", tmp_path / "s", "--to", "csv", "--out", tmp_path / "a.csv", env=terminal, check=True)
    assert "converting" in finished.stderr
    assert "60/60" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["s", "--to", "xml", "--out", "o"], 2, "Invalid value for '--to': 'xml' is not one of"),
        (["s", "--to", "npy"], 2, "Missing option '--out'"),
        (["nowhere", "--to", "npy", "--out", "o"], 2, "store 'nowhere': no such file or folder"),
        (["s", "--to", "npy", "--out", "s"], 1, "output 's' exists: remove it or give another name"),
        (["s", "--to", "npy", "--out", "o", "--columns", "block9"], 2, "s has no vectors 'block9': it has block1, block2"),
        (["half", "--to", "npy", "--out", "o"], 2, "store 'half' is unfinished, 10 of 30 images done: finish its extraction"),
    ],
)
def test_errors(folder: Path, arguments: list[str], code: int, message: str) -> None:
    write_store(Path("s"))
    write_store(Path("half"), finished=1)
    exit_code, _, stderr = run_command("convert", *arguments)
    assert exit_code == code
    (line,) = stderr.splitlines()
    assert line.startswith(f"densefeat: {message}")
