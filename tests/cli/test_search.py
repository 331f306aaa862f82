"""``densefeat search``: in its own process for what a shell sees, in ours for the rest."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import densefeat
from support.commands import Finished, run_command
from support.helpers import BUNDLED


@pytest.fixture
def store(photo_folder: Path, tmp_path: Path) -> Path:
    """Make a store of the photographs, with a poorer copy of the first and labels."""
    (photo_folder / "china/00.jpg").rename(photo_folder / "china/[red] 00.jpg")
    copy = (photo_folder / "china/[red] 00.jpg").read_bytes()
    (photo_folder / "flower/copy.jpg").write_bytes(copy)
    densefeat.extract(photo_folder, tmp_path / "store", BUNDLED, device="cpu", workers=1, labels="folder")
    return tmp_path / "store"


def run(*arguments: object) -> Finished:
    return run_command("search", *arguments)


def test_as_a_process(store: Path, photo_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "densefeat_cli.main", "search", store, "--image", photo_folder / "flower/copy.jpg", "-k", 3,
               "--block", 3, "--device", "cpu", "--html", tmp_path / "page.html", "--images", photo_folder]  # fmt: skip
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, env=os.environ)
    assert (ended.returncode, ended.stderr) == (0, f"wrote {tmp_path}/page.html\n")
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert lines[:3] == [
        ["rank", "score", "path", "label"],
        ["1", "1.000000", "china/[red]", "00.jpg", "china"],
        ["2", "1.000000", "flower/copy.jpg", "flower"],
    ]
    assert len(lines) == 4
    assert (tmp_path / "page.html").read_text().count("<img ") == 4


def test_json_of_a_key(store: Path) -> None:
    result = run(store, "--key", "flower/copy.jpg", "-k", "2", "--metric", "euclidean", "--format", "json")
    content = json.loads(result.stdout)
    assert {name: content[name] for name in ("query", "column", "metric")} == {
        "query": "flower/copy.jpg",
        "column": "block3",
        "metric": "euclidean",
    }
    assert content["results"][0] == {"rank": 1, "score": 0.0, "path": "china/[red] 00.jpg", "label": "china"}
    assert content["results"][1]["path"] != "flower/copy.jpg"
    assert len(content["results"]) == 2


def test_csv_of_several_queries(store: Path, photo_folder: Path) -> None:
    image = photo_folder / "flower/07.jpg"
    result = run(
        store, "--image", image, "--key", "flower/copy.jpg", "-k", "1", "--format", "csv", "--device", "cpu", "--block", "1"
    )
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["query"], row["rank"], row["path"]) for row in rows] == [
        (str(image), "1", "flower/07.jpg"),
        ("flower/copy.jpg", "1", "china/[red] 00.jpg"),
    ]


def test_all_pairs(store: Path, photo_folder: Path, tmp_path: Path) -> None:
    pages = ["--html", tmp_path / "d.html", "--images", photo_folder]
    result = run(store, "--all-pairs", "--threshold", "0.9999", "--format", "csv", *pages)
    (pair,) = csv.DictReader(io.StringIO(result.stdout))
    assert pair == {"rank": "1", "score": "1.0", "group": "1", "path": "china/[red] 00.jpg", "label": "china",
                    "other_path": "flower/copy.jpg", "other_label": "flower"}  # fmt: skip
    assert (tmp_path / "d.html").read_text().count("<img ") == 2


def test_all_pairs_by_faiss(store: Path) -> None:
    pytest.importorskip("faiss")
    result = run(store, "--all-pairs", "--threshold", "0.9999", "--format", "json", "--engine", "faiss")
    content = json.loads(result.stdout)
    assert (content["threshold"], content["complete"], len(content["results"])) == (0.9999, True, 1)


def test_a_search_that_stops_says_so(store: Path) -> None:
    result = run(store, "--all-pairs", "--threshold", "-1", "--max-pairs", "5")
    assert result.stderr == "densefeat: stopped at 5 pairs, there are more: see --threshold, --max-pairs\n"
    assert len(result.stdout.splitlines()) == 6


def test_a_table_has_whole_paths_and_no_commands_for_the_terminal(photo_folder: Path, tmp_path: Path) -> None:
    long = "folder/" * 15 + "\x1b[31mred\n.jpg"
    (photo_folder / long).parent.mkdir(parents=True)
    (photo_folder / "china/00.jpg").rename(photo_folder / long)
    densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, device="cpu", workers=1, blocks="1")
    result = run(tmp_path / "e.parquet", "--key", "china/01.jpg", "-k", "20")
    assert len(result.stdout.splitlines()) == 12
    assert "folder/" * 15 + r"\x1b[31mred\n.jpg" in result.stdout


def test_a_table_is_not_endless(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat_cli.search._TABLE_ROWS", 4)
    result = run(store, "--key", "flower/copy.jpg")
    assert len(result.stdout.splitlines()) == 5
    assert result.stderr == "densefeat: the table ends after 4 rows: csv and json have all\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "search for --image or --key, or for --all-pairs"),
        (["--key", "a", "--all-pairs"], "search for --image or --key, or for --all-pairs: not both"),
        (["--all-pairs"], "--all-pairs needs a --threshold, such as 0.95 for cosine"),
        (["--key", "a", "--threshold", "1"], "--threshold is for --all-pairs; for neighbours: -k"),
        (["--key", "a", "-k", "0"], "Invalid value for '-k'"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--key", "china/1.jpg"], "key 'china/1.jpg' is not in .*: did you mean china/01.jpg"),
        (["--key", "china/01.jpg", "--block", "9"], "has no block 9: it has block1, block2, block3"),
        (["--image", "nowhere.jpg", "--device", "cpu"], "query 'nowhere.jpg': No such file"),
    ],
)
def test_errors_of_the_library(store: Path, arguments: list[str], match: str) -> None:
    finished = run(store, *arguments)
    assert finished.exit_code == 2
    assert re.search(match, finished.stderr)
