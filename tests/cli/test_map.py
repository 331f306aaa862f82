"""``densefeat map``: what it writes and prints, and its errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import run_command
from support.stores import write_store


@pytest.mark.slow
def test_as_a_process(tmp_path: Path) -> None:
    write_store(tmp_path / "store", finished=2)
    command = [sys.executable, "-m", "densefeat_cli.main", "map", tmp_path / "store", "--out", tmp_path / "m.html",
               "--clusters", 4, "--images", tmp_path]  # fmt: skip
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.splitlines() == [
        "densefeat: 20 points of made-up: block1, block2 by PCA.",
        f"densefeat: {tmp_path}/store is not finished: 20 rows are there.",
        "densefeat: Clusters: 4 by k-means on block2, numbered from the largest.",
        "densefeat: Thumbnails of 0 of 20 points: the other images were not found or could not be decoded.",
        f"wrote {tmp_path}/m.html and {tmp_path}/m.parquet: 20 points",
    ]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    finished = run_command("map", tmp_path / "none", "--out", tmp_path / "m.html")
    assert finished.exit_code == 2
    assert finished.stderr.count("\n") == 1
    assert "no such file or folder" in finished.stderr
    assert not list(tmp_path.iterdir())


def test_options_reach_the_map(tmp_path: Path) -> None:
    write_store(tmp_path / "store")
    (tmp_path / "l.csv").write_text('path,kind\n"é/01, ""1"".jpg",a\n')
    options = ["--method", "tsne", "--labels", tmp_path / "l.csv", "--label-column", "kind", "--pool", "avg"]
    command = ["map", tmp_path / "store", "--out", tmp_path / "m.html", *options]
    assert "block1, block2 by t-SNE" in run_command(*command, check=True).stderr
    finished = run_command(*command[:-1], "max")
    assert finished.exit_code == 2
    assert "no features of pool 'max'" in finished.stderr
