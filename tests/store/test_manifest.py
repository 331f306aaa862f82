"""Manifests and records: what is written is read back, and damaged ones are not believed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from densefeat.base import add_checksum
from densefeat.errors import OutputError
from densefeat.store.layout import Layout
from densefeat.store.manifest import Failure, Manifest, PartRecord, Round, read_manifest, read_records, save_record

FAILED = Failure('a\n"é".jpg', "decode", "the file is empty", 3, 4)
RECORD = PartRecord(2, 20, 30, 30, rows=9, bytes=4, skipped=1, failures=(FAILED,))

PART = {"part": 2, "start": 20, "reached": 30, "stop": 30, "rows": 9, "bytes": 4, "skipped": 1, "failures": []}

MANIFEST = Manifest({}, {}, "photos/", (Round(0, "", "", 20), Round(2, "", "", 10)), job="job")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    for folder in (layout.data, layout.work, layout.records):
        folder.mkdir()
    return layout


def test_manifest_round_trip(layout: Layout) -> None:
    made = Manifest({"tap": "norm"}, {"model": "m"}, "photos/", (Round(0, "l", "f", 30),), (RECORD,), complete=True, removed=2)
    made.save(layout)
    assert read_manifest(layout) == replace(made, parts=(replace(RECORD, failures=()),))
    told = json.loads(layout.manifest.read_text())
    assert (told["kind"], told["rows"], told["skipped"]) == ("densefeat store", 9, 1)


def test_no_manifest(layout: Layout) -> None:
    assert read_manifest(layout) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(kind="other"), "of format 'other' 3"),
        (dict(format_version=4), "of format 'densefeat store' 4"),
        (dict(format_version=math.nan), "of format 'densefeat store' nan"),
        (dict(format_version=-1), "of format 'densefeat store' -1"),
        (dict(format_version=True), "of format 'densefeat store' True"),
        (dict(format_version="3"), "of format 'densefeat store' 3"),
        (dict(rounds=None), "rounds is None"),
        (dict(settings=[]), r"settings is \[\]"),
        (dict(complete=1), "complete is 1"),
        (dict(removed=-1), "removed is -1"),
        (dict(removed=10**30), "removed is 10000"),
        (dict(images=None), "images is None"),
        (dict(parts=[{"part": 1}]), "missing 5 required positional arguments"),
        (dict(parts=[PART | {"part": "../../victim/x"}]), "part is '../../victim/x'"),
        (dict(parts=[PART | {"rows": 9.5}]), "rows is 9.5"),
        (dict(parts=[PART | {"skipped": "x"}]), "skipped is 'x'"),
        (dict(parts=[PART | {"bytes": True}]), "bytes is True"),
        (dict(parts=[7]), "not a readable manifest"),
        (dict(parts={}), r"parts is \{\}"),
        (dict(rounds=[{"first_part": math.inf, "listing": "", "fingerprint": "", "positions": 1}]), "first_part is inf"),
    ],
)
def test_manifests_that_are_refused(change: dict, match: str, layout: Layout) -> None:
    Manifest({}, {}, "photos/", ()).save(layout)
    content = json.loads(layout.manifest.read_text()) | change
    del content["densefeat_sha256"]
    layout.manifest.write_text(json.dumps(add_checksum(content)))
    with pytest.raises(OutputError, match=match):
        read_manifest(layout)


@pytest.mark.parametrize("text", ["", "[" * 200_000, '{"kind":' * 50_000, "[]", "7", "\udcff"])
def test_files_that_are_no_manifest(text: str, layout: Layout) -> None:
    layout.manifest.write_text(text, errors="surrogateescape")
    with pytest.raises(OutputError, match=r"manifest\.json: not a readable manifest"):
        read_manifest(layout)


@pytest.mark.parametrize(
    "change", [dict(images="other/"), dict(densefeat_sha256="0" * 64), dict(densefeat_sha256=None), dict(added=1)]
)
def test_a_manifest_that_was_changed_is_noticed(change: dict, layout: Layout) -> None:
    Manifest({}, {}, "photos/", ()).save(layout)
    layout.manifest.write_text(json.dumps(json.loads(layout.manifest.read_text()) | change))
    with pytest.raises(OutputError, match="it is not as it was written.*restore it from a copy"):
        read_manifest(layout)


def test_a_manifest_from_before_checksums(layout: Layout) -> None:
    rounds = [{"first_part": 0, "listing": "l", "fingerprint": "f", "positions": 9}]
    old = {
        "kind": "densefeat store",
        "format_version": 2,
        "settings": {},
        "provenance": {},
        "images": "photos/",
        "rounds": rounds,
    }
    old |= {"rows": 9, "skipped": 1, "parts": [PART], "complete": True, "removed": 0, "job": "j"}
    layout.manifest.write_text(json.dumps(old))
    manifest = read_manifest(layout)
    assert manifest
    assert manifest.parts == (replace(RECORD, failures=()),)


def test_record_round_trip(layout: Layout) -> None:
    layout.part(2).write_bytes(b"rows")
    save_record(layout, MANIFEST.round_id, RECORD)
    assert list(read_records(layout, MANIFEST)) == [RECORD]


@pytest.mark.parametrize(
    ("job", "record", "file", "content"),
    [
        ("other", RECORD, "part", b"rows"),  # of a job that was started over
        ("job-2", RECORD, "part", b"row"),  # of another size than recorded
        ("job-2", RECORD, None, b""),
        ("job-2", RECORD, "unfinished", b"rows"),  # never moved
        ("job-2", replace(RECORD, reached=25), "part", b"rows"),  # unfinished by its record
        ("job-1", RECORD, "part", b"rows"),  # of a round that is closed
    ],
)
def test_records_that_are_refused(job: str, record: PartRecord, file: str | None, content: bytes, layout: Layout) -> None:
    if file:
        getattr(layout, file)(record.part).write_bytes(content)
    save_record(layout, job, record)
    assert list(read_records(layout, MANIFEST)) == []


NULL = '{"round": "job-2", "part": 2, "start": 0, "reached": 1, "stop": 1, "rows": 1, "bytes": 4, "failures": null}'

RECORD_OF_NO_ROUND = NULL.replace("null", "[]").replace('"round": "job-2", ', "")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 200_000, RECORD_OF_NO_ROUND, '{"round": "job-2"}', '{"round": "job-2", "part": 1, "more": 2}', NULL],
)
def test_damaged_records_are_ignored(text: str, layout: Layout) -> None:
    layout.record(2).write_text(text)
    assert list(read_records(layout, MANIFEST)) == []
