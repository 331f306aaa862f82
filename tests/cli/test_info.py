"""``densefeat info``: what it says of finished, unfinished, tiled and damaged stores, and of hostile names."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from densefeat.store.layout import Layout
from densefeat.store.manifest import Failure, read_manifest
from support.commands import Finished, run_command
from support.stores import random_features, write_rows, write_store

HOSTILE = Failure("\x1b[2Jrød\r\n[bold]\u202e.jpg", "decode", "no image \x07")
FAILURES = (HOSTILE, Failure("tile.tif", "tile", "damaged", 64, 0), *(Failure(f"{i}", "read", "gone") for i in range(5)))


@pytest.fixture
def info(folder: Path) -> Callable[..., Finished]:
    """Run the command in an empty folder."""
    return partial(run_command, "info")


def lines(text: str) -> list[str]:
    """With the columns' padding as one space."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_folder(info) -> None:
    write_store(Path("s"), shapes={"block1": (250,), "block2": (2, 3, 4)}, dtype="float16", failures=FAILURES)
    code, out, err = info("s")
    assert (code, err) == (0, "")
    output = lines(out)
    size = sum(path.stat().st_size for path in Path("s/data").iterdir())
    assert output[:9] == [
        "store s (folder, parts: 3)",
        "rows 30",
        "failures 7 (read 5, decode 1, tile 1)",
        r"\x1b[2Jrød\r\n[bold]\u202e.jpg: decode: no image \x07",
        "tile.tif at 64, 0: tile: damaged",
        "0: read: gone",
        "1: read: gone",
        "2: read: gone",
        "and 2 more",
    ]
    assert f"size {size / 1000:.1f} kB on disk, 16.4 kB of vectors in memory" in output
    assert {"columns path, label, width, height", "model made-up", "pool avg", f"weights sha256 {'0' * 64}"} <= set(output)
    assert output[-2:] == ["block1 250 float16 15.0 kB", "block2 2×3×4 float16 1.4 kB"]


def test_json(info) -> None:
    write_store(Path("s"), failures=FAILURES)
    _, out, _ = info("s", "--format", "json")
    assert out.isascii()
    found = json.loads(out)
    assert found["failures"]["count"] == 7
    assert found["failures"]["by_stage"] == {"read": 5, "decode": 1, "tile": 1}
    assert found["failures"]["first"][0]["path"] == HOSTILE.path
    assert (found["rows"], found["parts"], found["complete"], found["kind"]) == (30, 3, True, "folder")
    assert found["vectors"]["block2"] == {"shape": [5], "dtype": "float32", "memory_bytes": 600}
    assert found["memory_bytes"] == 960
    assert found["disk_bytes"] == sum(path.stat().st_size for path in Path("s/data").iterdir())
    assert found["provenance"]["model"] == "made-up"


def test_unfinished(info) -> None:
    write_store(Path("s"), failures=FAILURES, finished=2)
    output = lines(info("s")[1])
    assert output[:4] == [
        "store s (folder, parts: 2)",
        "unfinished 20 of 30 done; the same densefeat extract command resumes there",
        "rows 20",
        "failures 7 (read 5, decode 1, tile 1)",
    ]
    found = json.loads(info("s", "--format", "json")[1])
    assert (found["complete"], found["done"], found["total"]) == (False, 20, 30)


def test_a_store_of_unknown_length_without_rows(info) -> None:
    write_store(Path("s"), finished=0)
    layout = Layout(Path("s"))
    manifest = read_manifest(layout)
    replace(manifest, rounds=(replace(manifest.rounds[0], positions=None),)).save(layout)
    output = lines(info("s")[1])
    assert "unfinished 0 done; the same densefeat extract command resumes there" in output
    assert "rows 0" in output


def test_tiled_and_updated(info) -> None:
    write_store(Path("s"))
    layout = Layout(Path("s"))
    manifest = read_manifest(layout)
    tiles = {"tile": 64, "stride": 32, "min_content": 0.5}
    parts = tuple(replace(part, skipped=2000) for part in manifest.parts)
    replace(manifest, provenance=manifest.provenance | {"tiles": tiles}, parts=parts, removed=1).save(layout)
    output = lines(info("s")[1])
    assert {"tiles tile 64", "tiles stride 32", "tiles min_content 0.5", "skipped 6,000 tiles without enough content"} <= set(
        output
    )
    assert "removed 1 images with rows here are no longer in the input" in output


def test_single_file(info) -> None:
    write_rows(Path("e.parquet"), random_features(30), 0, 30)
    output = lines(info("e.parquet")[1])
    size = os.path.getsize("e.parquet")
    assert output[:3] == ["store e.parquet (single file)", "rows 30", "failures 0"]
    assert any(line.startswith(f"size {size / 1000:.1f} kB on disk, 960 bytes") for line in output)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("nowhere", 2, "store 'nowhere': no such file or folder"),
        ("empty", 2, "store 'empty': no manifest.json in it"),
        ("text", 2, "store 'text': not a Parquet file"),
        ("torn", 1, "store 'torn': 1 of 3 parts are missing or damaged (torn/data/part-00000.parquet: damaged"),
        ("short", 1, "store 'short': 1 of 3 parts are missing or damaged"),
    ],
)
def test_errors(info, name: str, code: int, message: str) -> None:
    Path("empty").mkdir()
    Path("text").write_text("text")
    for store in ("torn", "short"):
        write_store(Path(store))
    Path("torn/data/part-00000.parquet").write_bytes(b"PAR1")
    Path("short/data/part-00001.parquet").unlink()
    ended, out, err = info(name)
    assert (ended, out) == (code, "")
    (line,) = err.splitlines()
    assert line.startswith(f"densefeat: {message}")
