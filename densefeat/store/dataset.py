"""Writing a store's folder: parts that appear whole, a record for each, and the manifest that closes it."""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from densefeat.base import atomic_file, output_errors, sync
from densefeat.errors import OutputError
from densefeat.store.layout import PART, Layout
from densefeat.store.manifest import Failure, Manifest, PartRecord, read_manifest, read_records, save_record
from densefeat.store.reader import finished_parts, row_paths

_FAILURES_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("x", pa.int32()),
        pa.field("y", pa.int32()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
    ]
)


def check_folder(layout: Layout) -> None:
    """Raise OutputError where a store cannot be begun or continued: a file, or a folder with other people's things in it."""
    root = layout.root
    if root.exists() and not root.is_dir():
        raise OutputError(f"output {str(root)!r} is a file: give a folder, or a name that ends in .parquet")
    with output_errors(root):
        existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"output {str(root)!r} cannot be written: no permission to write in {str(existing)!r}")
        if existing != root:
            return
        others = sorted(path.name for path in root.iterdir() if not _is_remnant(path, layout))
    if others and not layout.manifest.exists():
        raise OutputError(f"output {str(root)!r} is no store of densefeat and not empty ({others[0]}): give a new folder")


def _is_remnant(path: Path, layout: Layout) -> bool:
    """Of a job that ended before its manifest was there: its locks, a manifest half written, empty folders."""
    if path in (layout.data, layout.work):
        return not any(below.is_file() for below in path.rglob("*"))
    return path.name.startswith((".lock", f".{layout.manifest.name}."))


def begin(layout: Layout, manifest: Manifest) -> None:
    """Make ``manifest`` the store's, and remove from the folder whatever is not part of its job."""
    with output_errors(layout.root):
        for folder in (layout.data, layout.work, layout.records):
            folder.mkdir(parents=True, exist_ok=True)
    manifest.save(layout)
    kept = {record.part for record in finished_parts(layout, manifest)}
    records = list(read_records(layout, manifest))
    recorded = {layout.record(record.part) for record in records}
    unfinished = {layout.unfinished(record.part) for record in records if not record.finished}
    with output_errors(layout.root):
        for path in layout.data.iterdir():
            if (match := PART.fullmatch(path.name)) and int(match[1]) not in kept:
                path.unlink()
        for path in layout.root.glob(".*.partial"):
            path.unlink()
        for path in layout.work.iterdir():
            if path.is_file() and path not in unfinished:
                path.unlink()
        for path in layout.records.iterdir():
            if path.is_file() and path not in recorded:
                path.unlink()
        if len(manifest.rounds) == 1:
            layout.failures.unlink(missing_ok=True)


def finish_part(layout: Layout, round_id: str, record: PartRecord) -> None:
    """Move a part from ``work/`` to ``data/`` if it is finished, and record it."""
    _check_round(layout, round_id)
    record = replace(record, bytes=layout.unfinished(record.part).stat().st_size)
    if record.finished:
        with output_errors(layout.part(record.part)):
            os.replace(layout.unfinished(record.part), layout.part(record.part))
        with suppress(OSError):
            sync(layout.data)
    save_record(layout, round_id, record)


def _check_round(layout: Layout, round_id: str) -> None:
    current = read_manifest(layout)
    if current is None or current.round_id != round_id:
        raise OutputError(f"output {str(layout.root)!r} was started anew by another process; this one ends")


def earlier_failures(layout: Layout, before_part: int) -> list[tuple[Failure, int]]:
    """Those of closed rounds, with their part. OutputError where their file is damaged."""
    if not before_part or not layout.failures.exists():
        return []
    try:
        entries = pq.read_table(layout.failures, schema=_FAILURES_SCHEMA).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise OutputError(f"{layout.failures}: damaged ({error}); --overwrite starts over") from error
    return [(Failure(**entry), part) for entry in entries if (part := entry.pop("part")) < before_part]


def all_failures(layout: Layout, manifest: Manifest, records: Sequence[PartRecord]) -> list[tuple[Failure, int]]:
    """Of all rounds, less those of earlier ones that the last one tried again. ``records``: of all finished parts."""
    first_part = manifest.rounds[-1].first_part
    failures = [(failure, record.part) for record in records for failure in record.failures]
    earlier = earlier_failures(layout, first_part)
    if earlier:
        rows = row_paths(layout, [record for record in records if record.part >= first_part])
        suspects = pa.array({failure.path for failure, _ in earlier}, pa.large_string())
        again = {failure.path for failure, _ in failures}
        again |= set(rows.filter(pc.is_in(rows, value_set=suspects)).to_pylist())
        earlier = [pair for pair in earlier if pair[0].path not in again]
    return earlier + failures


def have_outcome(
    paths: pa.LargeStringArray, layout: Layout, records: Sequence[PartRecord], failures: Sequence[Failure]
) -> np.ndarray:
    """bool, for each path: whether it has a row in these parts, or is among the failures."""
    failed = pa.array([failure.path for failure in failures], pa.large_string())
    found = np.zeros(len(paths), bool)
    for known in (row_paths(layout, records).combine_chunks(), failed):
        found |= pc.is_in(paths, value_set=known).to_numpy(zero_copy_only=False)
    return found


def close(layout: Layout, manifest: Manifest, tiled: pa.LargeStringArray | None = None) -> None:
    """Write ``failures.parquet``, then the manifest that names all parts, and remove ``work/``.

    ``tiled``: paths of images of which tiles were skipped; one without any row or failure becomes a failure itself.
    """
    _check_round(layout, manifest.round_id)
    records = finished_parts(layout, manifest)
    failures = all_failures(layout, manifest, records)
    if tiled is not None:
        blank = tiled.filter(pa.array(~have_outcome(tiled, layout, records, [failure for failure, _ in failures])))
        first_part = manifest.rounds[-1].first_part
        failures += [(Failure(path, "tile", "no tile with enough content"), first_part) for path in blank.to_pylist()]
    write_failures(layout.failures, failures)
    replace(manifest, parts=tuple(records), complete=True).save(layout)
    remove_work(layout)


def remove_work(layout: Layout) -> None:
    """After the manifest that needs it no more; a process that ended in between leaves this to the next."""
    shutil.rmtree(layout.work, ignore_errors=True)


def count_failures(layout: Layout) -> int:
    """In ``failures.parquet``; 0 before the store is closed."""
    return pq.read_metadata(layout.failures).num_rows if layout.failures.exists() else 0


def write_failures(path: Path, failures: Sequence[tuple[Failure, int]]) -> None:
    rows = [{**asdict(failure), "part": part} for failure, part in failures]
    with atomic_file(path) as beside, output_errors(path):
        pq.write_table(pa.Table.from_pylist(rows, _FAILURES_SCHEMA), beside, compression="zstd")
