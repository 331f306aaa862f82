"""Manifests and records: what is written is read back, and damaged ones are not believed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from densefeat.errors import OutputError
from densefeat.store.layout import Layout
from densefeat.store.manifest import Failure, Manifest, PartRecord, Round, read_manifest, read_records, save_record

FAILED = Failure('a\n"é".jpg', "decode", "the file is empty", 3, 4)
RECORD = PartRecord(2, 20, 30, 30, rows=9, bytes=4, skipped=1, failures=(FAILED,))

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
        (dict(kind="other"), "of format 'other' 2"),
        (dict(format_version=3), "of format 'densefeat store' 3"),
        (dict(rounds=None), "not a readable manifest"),
        (dict(parts=[{"part": 1}]), "not a readable manifest"),
    ],
)
def test_manifests_that_are_refused(change: dict, match: str, layout: Layout) -> None:
    Manifest({}, {}, "photos/", ()).save(layout)
    layout.manifest.write_text(json.dumps(json.loads(layout.manifest.read_text()) | change))
    with pytest.raises(OutputError, match=match):
        read_manifest(layout)


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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"round": "job-2"}', '{"round": "job-2", "part": 1, "more": 2}', NULL])
def test_damaged_records_are_ignored(text: str, layout: Layout) -> None:
    layout.record(2).write_text(text)
    assert list(read_records(layout, MANIFEST)) == []
