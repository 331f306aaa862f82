"""Stamps of files: what makes them differ, where they come from, and that listings pay nothing for them."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat.images.sources import open_source
from densefeat.images.stamps import Stamps, join_stamps, stamp_info, stamp_open_file


@pytest.mark.parametrize(
    ("info", "stamp"),
    [
        ({"size": 3, "ETag": '"a"', "LastModified": datetime(2026, 1, 1, tzinfo=UTC)}, '3 "a"'),  # s3fs
        ({"size": 3, "etag": "Cd==", "mtime": 5, "md5Hash": "x"}, "3 Cd=="),  # gcsfs
        ({"size": 3, "last_modified": "Monday", "etag": None}, "3 Monday"),  # adlfs
        ({"size": 3, "mtime": 5.25}, "3 5.25"),  # sftp
        ({"size": 3, "blob_id": "f00", "last_commit": None}, "3 f00"),  # Hugging Face
        ({"size": 3, "type": "file"}, "3 ?"),
        ({"size": None, "ETag": "a"}, "? a"),
        ({"size": None, "type": "file"}, None),
        ({}, None),
    ],
)
def test_stamps_of_listings(info: dict[str, Any], stamp: str | None) -> None:
    assert stamp_info(info) == stamp


def test_a_stamp_is_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    assert open_source(tmp_path).stamps().stamps.to_pylist() == ["3 1700000000123456789"]
    with open(file, "rb") as opened:
        assert stamp_open_file(opened) == "3 1700000000123456789"


def test_which_file_each_position_is_read_from(tmp_path: Path) -> None:
    for name, rows in (("b.parquet", 2), ("a.parquet", 3)):
        pq.write_table(pa.table({"image": [b"x"] * rows}), tmp_path / name)
    stamps = open_source(tmp_path / "*.parquet").stamps()
    assert stamps.files.to_pylist() == ["a.parquet", "b.parquet"]
    assert stamps.owners is not None
    assert stamps.owners.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("owners", "files", "positions"),
    [(None, [True, False, False], [True, False, False]), ([0, 2, 2, 0], [True, False, False], [True, False, False, True])],
)
def test_masks_of_files_and_positions(owners: list[int] | None, files: list[bool], positions: list[bool]) -> None:
    stamps = Stamps(pa.array("abc"), pa.array("123"), None if owners is None else np.array(owners))
    assert stamps.spread(np.array(files)).tolist() == positions
    assert stamps.gather(np.array(positions)).tolist() == files


def test_one_stamp_of_many_files() -> None:
    assert join_stamps([(b"a", "1"), (b"b", "2")]) == join_stamps([(b"b", "2"), (b"a", "1"), (b"c", None)])
    assert join_stamps([(b"a", "1"), (b"b", "2")]) != join_stamps([(b"a", "12"), (b"b", "")])
    assert join_stamps([(b"a", None)]) is None


@pytest.mark.parametrize("pattern", ["", "/*.parquet"])
def test_a_remote_listing_is_asked_once(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/stamped/1.png": b"x", "/stamped/2.png": b"yy"})
    with fs.open("/stamped/a.parquet", "wb") as file:
        pq.write_table(pa.table({"image": [b"x"] * 2}), file)
    source = open_source("memory://stamped" + pattern)
    for name in ("info", "ls", "find", "_open"):
        monkeypatch.delattr(type(fs), name)
    first = source.stamps().stamps
    assert first.null_count == 0
    monkeypatch.undo()
    fs.pipe("/stamped/2.png", b"yz")
    with fs.open("/stamped/a.parquet", "wb") as file:
        pq.write_table(pa.table({"image": [b"y"] * 2}), file)
    changed = [old != new for old, new in zip(first, open_source("memory://stamped" + pattern).stamps().stamps, strict=True)]
    assert changed == ([True] if pattern else [False, True])
