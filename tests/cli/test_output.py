"""What commands print: names from files command no terminal, and data for other programs stay as they are."""

import ast
import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from densefeat.errors import UsageError
from densefeat.labels.label_file import LabelFile
from densefeat.store.reader import Store
from support.commands import run_command
from support.helpers import BUNDLED
from support.probes import NAMES, make_features
from support.runs import write_classes

EVIL = "\x1b[2J\x9b31m\u202e\x07\x7f"  # clears the screen, goes on in red and backwards, and rings
ESCAPED = r"\x1b[2J\x9b31m\u202e\x07\x7f"
CPU = ["--device", "cpu"]
FORMULAS = ["=1+1.jpg", "+a.jpg", "-b.jpg", "@c.jpg", "\td.jpg", "e;=1.jpg"]


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders whose classes, images and broken images have names that command a terminal; a store of them."""
    folder = tmp_path_factory.mktemp("evil")
    for name in ("photos", "broken"):
        write_classes(folder / name, 6, classes=2, size=32)
        (folder / name / "class 1").rename(folder / name / f"{EVIL} 1")
    (folder / f"photos/class 0/{EVIL}.png").write_bytes(b"")
    for path in (folder / "broken").rglob("*.png"):
        path.rename(path.with_name(f"{EVIL}{path.name}"))
        path.with_name(f"{EVIL}{path.name}").write_bytes(b"")
    run_command("extract", "--images", "photos", "--model", BUNDLED, "--labels", "folder", "--out", "store", *CPU, cwd=folder)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["extract", "--images", "photos", "--on-error", "fail", "--out", "e", "--model", BUNDLED, *CPU],
        ["extract", "--images", "photos", "--weights", f"{EVIL}.pt", "--out", "e", "--model", BUNDLED, *CPU],
        ["extract", "--images", "broken", "--out", f"e{EVIL}", "--model", BUNDLED, *CPU],
        ["info", "store"],
        ["info", EVIL],
        ["verify", f"photos/{EVIL}"],
        ["search", "store", "--key", f"{EVIL} 1/000.png"],
        ["search", "store", "--key", f"{EVIL}/0"],
        ["convert", "store", "--to", "npz", "--out", f"{EVIL}.npz"],
        ["probe", "store", "--protocol", "knn", "--out", f"p{EVIL}"],
        ["predict", "--model", BUNDLED, "--images", "photos", "--out", f"o{EVIL}", *CPU],
        ["evaluate", f"{EVIL}", "--data", "photos", *CPU],
        ["train", f"{EVIL}.yaml", "--out", "run"],
        [
            "finetune",
            "--data",
            "photos",
            "--model",
            BUNDLED,
            "--steps",
            "1",
            "--out",
            f"run{EVIL}",
            "batch_size=8",
            "workers=0",
            *CPU,
        ],
    ],
    ids=lambda command: ascii(" ".join(command)),
)
def test_names_do_not_command_the_terminal(command: list[str], evil: Path) -> None:
    done = run_command(*command, cwd=evil)
    text = done.stdout + done.stderr
    assert [line for line in text.split("\n") if not line.isprintable()] == []
    assert ESCAPED in text


def test_log_lines_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(path: Path) -> None:
        logging.getLogger("densefeat.store").warning("store %s", EVIL)
        raise KeyboardInterrupt(EVIL)

    monkeypatch.setattr("densefeat.store.describe_store", describe)
    lines = run_command("info", "store").stderr.split("\n")
    assert [line for line in lines if line] == [f"densefeat: store {ESCAPED}", f"densefeat: {ESCAPED}"]


def test_a_note_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(path: Path) -> None:
        raise UsageError("x" * 1_000_000)

    monkeypatch.setattr("densefeat.store.describe_store", describe)
    assert run_command("info", "store").stderr == f"densefeat: {'x' * 2000}…\n"


def test_commands_print_through_one_file() -> None:
    """Else a line could be forgotten. The help, which ``main`` prints, names no files."""
    import densefeat_cli

    for path in sorted(Path(densefeat_cli.__path__[0]).glob("*.py")):
        if path.name not in ("output.py", "main.py"):
            calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"} & set(calls), path


@pytest.mark.parametrize("shape", ["csv", "json"])
def test_data_are_escaped_on_a_terminal_alone(shape: str, make_store: Callable[..., Store]) -> None:
    """A real process, whose stdout is a terminal; on a pipe the data are as they are."""
    store = make_store({"block1": np.eye(3, dtype=np.float32)}, keys=["a.jpg", f"{EVIL}.jpg", "象 €.jpg"])
    command = ["search", str(store.path), "--key", "a.jpg", "--format", shape]
    terminal, device = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "densefeat", *command], stdout=device)
    os.close(device)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the process has closed its side
            break
    os.close(terminal)
    assert process.wait() == 0
    lines = shown.decode().splitlines()
    assert [line for line in lines if not line.isprintable()] == []
    assert sum(r"\x9b31m\u202e" in line for line in lines) == sum("象 €.jpg" in line for line in lines) == 1
    piped = run_command(*command, check=True).stdout
    assert ("\x9b31m\u202e" in piped, "象 €.jpg" in piped) == (True, True)


@pytest.fixture(scope="module")
def formulas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, a list of them with labels, and a store whose keys and labels begin like formulas."""
    folder = tmp_path_factory.mktemp("formulas")
    generator = np.random.default_rng(0)
    for name in FORMULAS:
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name)
    run_command("extract", "--images", ".", "--model", BUNDLED, "--out", "store", *CPU, cwd=folder, check=True)
    return folder


@pytest.mark.parametrize(
    ("command", "file", "cells"),
    [
        (["search", "store", "--key", "+a.jpg", "--format", "csv"], None, 5),
        (["convert", "store", "--to", "csv", "--out", "c.csv"], "c.csv", 6),
        (["predict", "--model", BUNDLED, "--images", ".", "--out", "o", *CPU], "o/predictions.csv", 6),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_spreadsheets_formulas_are_told_and_keys_stay(
    command: list[str], file: str | None, cells: int, formulas: Path
) -> None:
    done = run_command(*command, cwd=formulas, check=True)
    assert f"a spreadsheet program would take {cells} of its cells for formulas, the first " in done.stderr
    assert sum("formulas" in line for line in done.stderr.splitlines()) == 1
    table = pd.read_csv(formulas / file if file else io.StringIO(done.stdout))
    assert set(table["path"]) == set(FORMULAS) - ({"+a.jpg"} if file is None else set())
    if file:  # also as a file of labels
        assert set(LabelFile(formulas / file).keys.to_pylist()) == set(FORMULAS)


def test_labels_that_look_like_formulas_are_told_by_a_probe(tmp_path: Path, make_store: Callable[..., Store]) -> None:
    codes = np.arange(60) % 2
    store = make_store(make_features(codes), labels=[("=" * code) + NAMES[code] for code in codes])
    done = run_command("probe", store.path, "--protocol", "knn", "--out", tmp_path / "p", check=True)
    table = pd.read_csv(tmp_path / "p/predictions.csv")
    assert set(table["label"]) == {"ant", "=bee"}
    count = int(sum(table["label"] == "=bee") + sum(table["predicted"] == "=bee"))
    assert f"would take {count} of its cells for formulas, the first '=bee'" in done.stderr
