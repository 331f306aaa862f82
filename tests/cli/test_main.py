"""The command line as a person meets it: output, one-line errors, exit codes."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from densefeat.images import MAX_PIXELS, MAX_TILES
from densefeat_cli.main import _StderrHandler
from support.commands import run_command
from support.helpers import BUNDLED
from support.processors import AVX2, AVX512_BF16


def run_process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "densefeat", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_extract_as_a_process(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "bad.png").write_bytes(b"x")
    for name in ("a.pdf", "b.pdf", "c.psd"):
        (photo_folder / name).write_bytes(b"x")
    ended = run_process(
        "extract", "--images", photo_folder, "--out", tmp_path / "e.parquet", "--model", BUNDLED, "--blocks", "2,3", "--tap",
        "raw", "--pool", "max", "--batch-size", 4, "--workers", 1, "--device", "cpu", "--image-size", 40,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert line.startswith(
        f"wrote {tmp_path}/e.parquet: 12 rows (block2 300, block3 342), 1 failures ({tmp_path}/e.failures.jsonl)"
    )
    assert line.endswith("images/s; left out: 2 .pdf, 1 .psd")
    assert (
        ended.stderr == f"densefeat: images {str(photo_folder)!r}: left out: 2 .pdf, 1 .psd\n"
    )  # no terminal, no progress bar
    made_by = json.loads(pq.read_schema(tmp_path / "e.parquet").metadata[b"densefeat"])
    assert (made_by["tap"], made_by["pool"], made_by["precision"]) == ("raw", ["max"], "fp32")
    assert made_by["preprocessing"]["size"] == 40


@pytest.mark.parametrize(("flags", "precision"), [(AVX512_BF16, "bf16"), (AVX2, "fp32")])
def test_precision(
    flags: str, precision: str, photo_folder: Path, tmp_path: Path, pretend_flags: Callable[[str], None]
) -> None:
    pretend_flags(flags)
    options = ("--model", BUNDLED, "--blocks", 1, "--device", "cpu", "--precision", "bf16")
    finished = run_command("extract", "--images", photo_folder, "--out", tmp_path / "e.parquet", *options, check=True)
    made_by = json.loads(pq.read_schema(tmp_path / "e.parquet").metadata[b"densefeat"])
    assert made_by["precision"] == precision
    said = [line for line in finished.stderr.splitlines() if "precision" in line]
    assert len(said) == (precision == "fp32")
    assert all(line.startswith("densefeat: precision: fp32 (this processor has no arithmetic in bf16") for line in said)


def test_images_that_need_more_than_the_memory_given_are_failures(photo_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (2000, 2000)).save(photo_folder / "large.jpg")
    finished = run_command(
        "extract", "--images", photo_folder, "--out", tmp_path / "e", "--model", BUNDLED, "--blocks", 1, "--memory", "16.5 mb",
        "--device", "cpu",
    )  # fmt: skip
    assert "12 rows" in finished.stdout
    (failure,) = pq.read_table(tmp_path / "e/failures.parquet").to_pylist()
    assert (failure["path"], failure["stage"]) == ("large.jpg", "memory")
    assert re.fullmatch(
        r"2000×2000 pixels of JPEG need \d\d MB of memory to be decoded, more than the 16 MB for all images .* \(--memory\)",
        failure["reason"],
    )
    again = ("extract", "--images", photo_folder, "--out", tmp_path / "e", "--model", BUNDLED, "--blocks", 1, "--device", "cpu")
    assert "13 rows (block1 216), 0 failures" in run_command(*again, "--update", "--memory", "1GB").stdout


def test_help_names_the_default_limits() -> None:
    shown = run_command("extract", "--help").stdout
    assert f"[default: {MAX_PIXELS}]" in shown
    assert f"[default: {MAX_TILES}]" in shown


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
        (
            ["extract", "--images", "photos", "--out", "e.parquet", "--memory", "plenty"],
            2,
            "densefeat: Invalid value for '--memory': 'plenty' is no number of bytes: give one such as 2GB or 500MB",
        ),
        (["frobnicate"], 2, "densefeat: No such command 'frobnicate'."),
        (["models", "x*"], 2, "densefeat: no network fits 'x*'"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, message: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo_folder.parent)
    finished = run_command(*arguments)
    assert finished.exit_code == code
    assert finished.stderr.startswith(message)
    assert finished.stderr.count("\n") == 1
    assert os.listdir() == ["photos"]


def test_a_process_ends_like_a_command_in_this_one(tmp_path: Path) -> None:
    """Exit codes and output that other tests take from :func:`run_command`."""
    for arguments in (
        ["--version"],
        [],
        ["extract"],
        ["info", "nowhere"],
        ["convert", "e.parquet", "--to", "npy", "--out", "no/o"],
    ):
        ended = run_process(*arguments, cwd=tmp_path)
        expected = run_command(*arguments, cwd=tmp_path)
        assert ended.returncode == expected.exit_code
        assert ended.stderr == expected.stderr
        assert ended.stdout == expected.stdout


def test_commands_leave_nothing_behind(tmp_path: Path) -> None:
    log = logging.getLogger("densefeat")
    before = dict(os.environ), os.getcwd(), log.handlers[:], log.level, signal.getsignal(signal.SIGTERM), sys.argv, sys.stdout
    run_command("info", "nowhere", cwd=tmp_path, env={"TTY_COMPATIBLE": "1"})
    assert before == (
        dict(os.environ), os.getcwd(), log.handlers, log.level, signal.getsignal(signal.SIGTERM), sys.argv, sys.stdout
    )  # fmt: skip


def test_debug_shows_the_traceback() -> None:
    ended = run_process("--debug", "extract", "--images", "nowhere", "--out", "e.parquet")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "UsageError: images 'nowhere': no such folder" in ended.stderr


def test_bugs_are_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("densefeat.store.describe_store", fail)
    expected = "densefeat: ZeroDivisionError: by zero (this is a bug: run again with --debug and report it)\n"
    assert run_command("info", "store") == (1, "", expected)


def test_no_image_readable_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"")
    finished = run_command("extract", "--images", tmp_path / "photos", "--out", tmp_path / "e.parquet", "--model", BUNDLED)
    assert finished.exit_code == 1
    assert finished.stderr.startswith("densefeat: none of 1 images could be read")
    assert (tmp_path / "e.failures.jsonl").read_text().count("\n") == 1


def test_models_table() -> None:
    header, row = run_command("models", "*bc100*").stdout.splitlines()
    assert header.split() == ["name", "parameters", "block", "channels", "input", "tag", "licence", "weights"]
    assert row.split()[:6] == [BUNDLED, "834,332", "216", "300", "342", "3×32×32"]


def test_a_line_of_the_log_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    handler = _StderrHandler()
    for text in ("precision: fp32", "another", "precision: fp32"):
        handler.emit(logging.LogRecord("densefeat", logging.WARNING, "", 0, text, (), None))
    assert capsys.readouterr().err.splitlines() == ["densefeat: precision: fp32", "densefeat: another"]
