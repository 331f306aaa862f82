"""Rows that take the places of others: each image once, in its place, whatever the parts it was and is in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat.store.folder import close_store, save_part, start_job
from densefeat.store.layout import Layout
from densefeat.store.manifest import Manifest, PartRecord, Round, read_manifest
from densefeat.store.reader import open_store
from densefeat.store.writer import EmbeddingWriter, make_embedding_schema

SCHEMA = make_embedding_schema({"block1": (1,)}, {})


def write_part(layout: Layout, manifest: Manifest, part: int, rows: str, value: float) -> None:
    """Write and record a part whose rows are called by single letters."""
    with EmbeddingWriter(layout.unfinished(part), SCHEMA) as writer:
        if rows:
            plain = {"path": list(rows), "width": [1] * len(rows), "height": [1] * len(rows)}
            writer.append(plain, {"block1": np.full((len(rows), 1), value, np.float32)})
    save_part(layout, manifest.round_id, PartRecord(part, 0, 9, 9, len(rows), 0))


def write_update(root: Path, old: Sequence[str], new: Sequence[str]) -> tuple[Layout, Manifest]:
    """A store of parts with rows ``old``, whose update with the rows ``new`` is not closed yet."""
    layout = Layout(root)
    root.mkdir()
    manifest = Manifest({}, {}, "made-up", (Round(0, "", "", 9),))
    start_job(layout, manifest)
    for part, rows in enumerate(old):
        write_part(layout, manifest, part, rows, 1)
    close_store(layout, manifest, pa.array([], pa.large_string()))
    closed = read_manifest(layout)
    assert closed is not None
    updated = Manifest(
        {}, {}, "made-up", (*closed.rounds, Round(len(old), "", "", 9, replaces=True)), closed.parts, job=closed.job
    )
    start_job(layout, updated)
    for part, rows in enumerate(new, len(old)):
        write_part(layout, updated, part, rows, 2)
    return layout, updated


@pytest.mark.parametrize(
    ("old", "new", "images", "expected"),
    [
        (["abc", "def"], ["bf"], "bf", ["aBc", "deF"]),
        (["abc", "def"], ["f", "b"], "bf", ["aBc", "deF"]),
        (["abc"], ["xby"], "xby", ["aBc", "XY"]),
        (["abc", "def"], ["x", "by"], "bxy", ["aBc", "def", "X", "Y"]),
        (["aab", "bbc"], ["bbbbb"], "b", ["aaBBBBB", "c"]),  # tiles of an image, over two parts
        (["aab", "bbc"], ["b"], "bc", ["aaB", ""]),  # one that is smaller now, and one that cannot be read any more
        (["abc"], ["", "c"], "abc", ["C"]),
        (["abc"], ["cba"], "abc", ["ABC"]),
    ],
)
def test_rows_take_the_places_of_old_ones(
    old: list[str], new: list[str], images: str, expected: list[str], tmp_path: Path
) -> None:
    layout, updated = write_update(tmp_path / "store", old, new)
    assert "".join(open_store(layout.root).keys) == "".join(old)
    close_store(layout, updated, pa.array(images, pa.large_string()))
    parts = [pq.read_table(part) for part in sorted(layout.data.iterdir())]
    rows = [part.to_pylist() for part in parts]
    names = ["".join(row["path"].upper() if row["block1"] == [2] else row["path"] for row in part) for part in rows]
    assert names == expected  # capitals: new rows
    assert "".join(open_store(layout.root).keys) == "".join(expected).lower()
    assert not layout.work.exists()
