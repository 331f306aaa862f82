"""The command line as a person meets it: real processes, one-line errors, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from densefeat.images.decode import MAX_PIXELS
from support.helpers import BUNDLED


def densefeat(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "densefeat_cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment)


def test_extract_writes_and_says_what(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "bad.png").write_bytes(b"x")
    ended = densefeat("extract", "--images", photo_folder, "--out", tmp_path / "e.parquet", "--model", BUNDLED, "--blocks", "2,3",
                      "--tap", "raw", "--pool", "max", "--batch-size", 4, "--workers", 1, "--device", "cpu", "--precision", "bf16",
                      "--image-size", 40)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert line.startswith(
        f"wrote {tmp_path}/e.parquet: 12 rows (block2 300, block3 342), 1 failures ({tmp_path}/e.failures.jsonl)"
    )
    assert line.endswith("images/s")
    assert ended.stderr == ""  # no terminal, no progress bar
    made_by = json.loads(pq.read_schema(tmp_path / "e.parquet").metadata[b"densefeat"])
    assert (made_by["tap"], made_by["pool"], made_by["precision"]) == ("raw", ["max"], "bf16")
    assert made_by["preprocessing"]["size"] == 40


def test_help_names_the_default_of_max_pixels() -> None:
    assert f"[default: {MAX_PIXELS}]" in densefeat("extract", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["extract"], 2, "densefeat: Missing option '--images'."),
        (["extract", "--images", "nowhere", "--out", "e.parquet"], 2, "densefeat: images 'nowhere': no such folder"),
        (
            ["extract", "--images", "photos", "--out", "no/e.parquet"],
            1,
            "densefeat: output 'no/e.parquet' cannot be written: No such",
        ),
        (
            ["extract", "--images", "photos", "--out", "e.parquet", "--model", "x" * 9],
            2,
            "densefeat: unknown model 'xxxxxxxxx'",
        ),
        (
            ["extract", "--images", "photos", "--out", "e.parquet", "--tap", "x"],
            2,
            "densefeat: Invalid value for '--tap': 'x' is not",
        ),
        (
            ["extract", "--images", "photos", "--out", "e.parquet", "--batch-size", "many"],
            2,
            "densefeat: Invalid value for '--batch",
        ),
        (
            ["extract", "--images", "photos", "--out", "e.parquet", "--model", BUNDLED, "--weights", "photos"],
            1,
            "densefeat: weights ",
        ),
        (["frobnicate"], 2, "densefeat: No such command 'frobnicate'."),
        (["models", "x*"], 2, "densefeat: no network fits 'x*'"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, message: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo_folder.parent)
    ended = densefeat(*arguments)
    assert ended.returncode == code
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1
    assert os.listdir() == ["photos"]


def test_debug_shows_the_traceback() -> None:
    ended = densefeat("--debug", "extract", "--images", "nowhere", "--out", "e.parquet")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "UsageError: images 'nowhere': no such folder" in ended.stderr


def test_no_image_readable_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"")
    ended = densefeat("extract", "--images", tmp_path / "photos", "--out", tmp_path / "e.parquet", "--model", BUNDLED)
    assert ended.returncode == 1
    assert ended.stderr.startswith("densefeat: none of 1 images could be read")
    assert (tmp_path / "e.failures.jsonl").read_text().count("\n") == 1


def test_models_table() -> None:
    ended = densefeat("models", "*bc100*")
    header, row = ended.stdout.splitlines()
    assert header.split() == ["name", "parameters", "block", "channels", "input", "tag", "licence", "weights"]
    assert row.split()[:6] == [BUNDLED, "834,332", "216", "300", "342", "3×32×32"]


@pytest.mark.parametrize("command", [[], ["extract"], ["models"]])
def test_every_help_ends_with_an_example(command: list[str]) -> None:
    ended = densefeat(*command, "--help")
    assert ended.returncode == 0
    assert "Example: densefeat" in ended.stdout


def test_help_is_quick() -> None:
    """No measuring of time here: what costs seconds is not imported."""
    code = "import sys; sys.argv[1:] = ['--help']; import densefeat_cli.main as m\ntry: m.main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines()[-1].split()
    assert "click" in modules
    assert not {"torch", "timm", "numpy", "rich", "densefeat", "pyarrow"} & set(modules)
