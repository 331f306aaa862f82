"""``densefeat report``: tables, files, and what it says of wrong use."""

import csv
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from densefeat.loading.load import load_network
from support.commands import Finished, run_command
from support.helpers import BUNDLED


@pytest.fixture
def run(folder: Path) -> Callable[..., Finished]:
    """Run the command in an empty folder."""
    return partial(run_command, "report")


@pytest.fixture
def data(tmp_path: Path, photographs: list[Image.Image]) -> Path:
    """Four photographs at 32×32, of two of the bundled network's classes."""
    classes = load_network(BUNDLED, head=True).classes
    assert classes is not None
    for i, photograph in enumerate(photographs[:4]):
        path = tmp_path / "data" / classes[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.resize((32, 32)).save(path)
    return tmp_path / "data"


def test_reuse(run, tmp_path: Path) -> None:
    code, out, err = run("reuse", BUNDLED, "--out", "reuse.svg")
    assert (code, err) == (0, "wrote: reuse.svg, reuse.csv\n")
    rows = [line.split("  ") for line in out.splitlines()]
    assert rows[0][0] == "observation"
    assert [row[-1].strip() for row in rows[1:]] == ["yes", "yes", "no", "yes", "no"]  # as docs/report.md has it
    assert "0.979" in out
    assert (tmp_path / "reuse.svg").read_bytes().startswith(b"<?xml")
    assert len((tmp_path / "reuse.csv").read_text().splitlines()) == 460


def test_a_table_of_others_is_not_replaced(run, tmp_path: Path) -> None:
    (tmp_path / "reuse.csv").write_text("path,label\n")
    for more in ((), ("--what", "prune", "--images", tmp_path)):
        code, _, err = run("reuse", BUNDLED, "--out", "reuse.png", *more)
        assert (code, err.count("\n")) == (2, 1)
        assert "output 'reuse.csv' exists and was not written by this command: move it away" in err
    assert [path.name for path in tmp_path.iterdir()] == ["reuse.csv"]
    (tmp_path / "reuse.csv").unlink()
    assert run("reuse", BUNDLED, "--out", "reuse.png")[0] == run("reuse", BUNDLED, "--out", "reuse.png")[0] == 0


@pytest.mark.slow
def test_prune_resumes(run, data: Path, tmp_path: Path) -> None:
    command = ("reuse", BUNDLED, "--what", "prune", "--images", "data", "--device", "cpu", "--out", "prune.png")
    code, out, err = run(*command)
    assert code == 0
    assert err == "densefeat: 4 of 4 labelled images\nwrote: prune.png, prune.csv\n"
    assert "459 connections, each alone on 2 images (one is 50 points)" in out
    with open(tmp_path / "prune.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 459
    with Image.open(tmp_path / "prune.png") as image:
        assert image.width > 1400
    assert run(*command) == (code, out, err)
    next(data.glob("*/0.png")).unlink()
    code, _, err = run(*command)
    assert code == 2
    assert "'prune.jsonl' belongs to other work (images differ): remove it" in err


def test_model(run, tmp_path: Path) -> None:
    code, out, err = run("model", BUNDLED, "--out", "-")
    assert (code, err) == (0, "")
    assert out.startswith(f"# {BUNDLED}, 32×32\n")
    assert run("model", BUNDLED, "--out", "model.md") == (0, "", "wrote: model.md\n")
    assert (tmp_path / "model.md").read_text() == "<!-- generator: densefeat -->\n" + out
    assert run("model", BUNDLED, "--out", "model.html")[0] == 0
    assert (tmp_path / "model.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("reuse", BUNDLED), 2, "Missing option '--out'"),
        (("reuse", BUNDLED, "--out", "reuse.gif"), 2, "picture 'reuse.gif': its name must end in .png or .svg"),
        (("reuse", BUNDLED, "--out", "no/reuse.png"), 1, "output 'no/reuse.png' cannot be written"),
        (("reuse", "resnet18", "--out", "a.png"), 2, "ResNet: its connections are not known"),
        (("reuse", "densnet", "--out", "a.png"), 2, "unknown model 'densnet'"),
        (("reuse", BUNDLED, "--out", "a.png", "--what", "prune"), 2, "--what prune needs labelled --images"),
        (("reuse", BUNDLED, "--out", "a.png", "--images", "x"), 2, "--images is for --what prune"),
        (("reuse", BUNDLED, "--out", "a.png", "--label-column", "x"), 2, "--label-column is for --what prune"),
        (("reuse", BUNDLED, "--out", "a.png", "--what", "prune", "--images", "x"), 2, "'x'"),
        (("model", BUNDLED, "--out", "model.pdf"), 2, "page 'model.pdf': its name must end in .html or .md"),
        (("model", "resnet18", "--out", "-"), 2, "ResNet: its connections are not known"),
        (("model", BUNDLED, "--out", "-", "--runs", "none"), 2, "runs 'none': no such folder"),
    ],
)
def test_wrong_use(run, arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    ended, out, err = run(*arguments)
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_help_ends_with_an_example(run) -> None:
    for command in ("reuse", "model"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert re.search(rf"Example: densefeat report {command} {BUNDLED} --out\s+\w+\.\w+\s*$", out)
