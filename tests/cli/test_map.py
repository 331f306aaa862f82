"""``densefeat map``: in its own process for what a shell sees, in ours for the rest."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from densefeat.errors import UsageError
from densefeat_cli.map import map_
from support.stores import write_store


def test_in_a_shell(tmp_path: Path) -> None:
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


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "densefeat_cli.main", "map", tmp_path / "none", "--out", tmp_path / "m.html"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "no such file or folder" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_options_reach_the_map(tmp_path: Path) -> None:
    write_store(tmp_path / "store")
    (tmp_path / "l.csv").write_text('path,kind\n"é/01, ""1"".jpg",a\n')
    given = ["--method", "tsne", "--labels", tmp_path / "l.csv", "--label-column", "kind", "--pool", "avg"]
    arguments = [tmp_path / "store", "--out", tmp_path / "m.html", *given]
    result = CliRunner().invoke(map_, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    assert "block1, block2 by t-SNE" in result.stderr
    with pytest.raises(UsageError, match="no features of pool 'max'"):
        CliRunner().invoke(map_, [*map(str, arguments[:-1]), "max"], catch_exceptions=False)


def test_help_has_an_example() -> None:
    assert CliRunner().invoke(map_, ["--help"]).output.rstrip().endswith("Example: densefeat map embeddings/ --out map.html")
