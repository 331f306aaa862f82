"""The life of a store's folder: a job starts, saves parts that appear whole with a record for each, and closes the store."""

import os
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from densefeat.base import output_errors, remove_folder, sync_folder
from densefeat.errors import OutputError
from densefeat.store.failures import read_failures, write_failures
from densefeat.store.layout import Layout
from densefeat.store.manifest import Failure, Manifest, PartRecord, describe_file, read_manifest, read_records, save_record
from densefeat.store.outputs import list_leftovers, remove_work
from densefeat.store.parts import find_known_paths, read_paths
from densefeat.store.replacing import commit_replacement, keep_filled, stage_replacement


def start_job(layout: Layout, manifest: Manifest) -> None:
    """Make ``manifest`` the store's, and remove from the folder what earlier jobs left there.

    Raises UsageError, before anything is changed, where somebody else's file has a name that the job may need.
    """
    leftovers = list_leftovers(layout, manifest)
    with output_errors(layout.root):
        for folder in (layout.data, layout.work, layout.records):
            folder.mkdir(parents=True, exist_ok=True)
    manifest.save(layout)
    with output_errors(layout.root):
        for path in leftovers:
            path.unlink(missing_ok=True)
    remove_folder(layout.closing)


def save_part(layout: Layout, round_id: str, record: PartRecord) -> None:
    """Record a part; if it is finished, move it from ``work/`` to ``data/`` first."""
    manifest = _check_round(layout, round_id)
    record = describe_file(record, layout.unfinished(record.part))
    if record.finished and not manifest.waits:
        with output_errors(layout.part(record.part)):
            os.replace(layout.unfinished(record.part), layout.part(record.part))
        sync_folder(layout.data)
    save_record(layout, round_id, record)


def close_store(
    layout: Layout, manifest: Manifest, images: pa.LargeStringArray, tiled: pa.LargeStringArray | None = None
) -> None:
    """Write ``failures.parquet``, then the manifest that names all parts, and remove ``work/``.

    ``images``: the paths that the last round extracted; if it replaces rows, they take the places of the old ones now.
    ``tiled``: paths of images of which tiles were skipped; one that has neither a row nor a failure becomes a failure itself.
    """
    _check_round(layout, manifest.round_id)
    first_part = manifest.rounds[-1].first_part
    own = [record for record in read_records(layout, manifest) if record.finished]
    failures = [*_list_earlier_failures(layout, manifest, first_part, images), *_list_failures(own)]
    if manifest.waits:
        records = stage_replacement(layout, manifest.parts, own, images)
    else:
        records = [*manifest.parts, *(keep_filled(own) if manifest.parts else own)]
    if tiled is not None:
        staged = {record.part: layout.closing_part(record.part) for record in records}
        parts = [file if file.exists() else layout.part(part) for part, file in staged.items()]
        blank = tiled.filter(pa.array(~find_known_paths(tiled, parts, [failure for failure, _ in failures])))
        failures += [(Failure(path, "tile", "no tile with enough content"), first_part) for path in blank.to_pylist()]
    checksum = write_failures(layout.failures, failures)
    closed = replace(manifest, parts=tuple(records), complete=True, failures_checksum=checksum)
    if manifest.waits:
        commit_replacement(layout, closed)
    else:
        closed.save(layout)
        for record in own:
            if record not in records:
                layout.part(record.part).unlink(missing_ok=True)
        remove_work(layout)


def _check_round(layout: Layout, round_id: str) -> Manifest:
    current = read_manifest(layout)
    if current is None or current.round_id != round_id:
        raise OutputError(f"output {str(layout.root)!r} was started anew by another process; this one ends")
    return current


def collect_failures(layout: Layout, manifest: Manifest) -> list[tuple[Failure, int]]:
    """Return the failures of a store with their parts, those of the unfinished last round among them.

    Failures that it has tried again are left out. A round whose rows readers do not see yet does not count.
    """
    if manifest.complete:
        return read_failures(layout, manifest)
    first_part = manifest.rounds[-1].first_part
    if manifest.waits:
        return read_failures(layout, manifest, first_part)
    own = [record for record in read_records(layout, manifest) if record.finished]
    failures = _list_failures(own)
    failed = pa.array([failure.path for failure, _ in failures], pa.large_string())
    tried = pa.concat_arrays([read_paths([layout.part(record.part) for record in own]), failed])
    return [*_list_earlier_failures(layout, manifest, first_part, tried), *failures]


def _list_failures(records: Sequence[PartRecord]) -> list[tuple[Failure, int]]:
    return [(failure, record.part) for record in records for failure in record.failures]


def _list_earlier_failures(
    layout: Layout, manifest: Manifest, first_part: int, tried: pa.LargeStringArray
) -> list[tuple[Failure, int]]:
    """List the failures of rounds before the one that begins with ``first_part`` and has tried these paths."""
    earlier = read_failures(layout, manifest, first_part)
    paths = pa.array([failure.path for failure, _ in earlier], pa.large_string())
    again = pc.is_in(paths, value_set=tried).to_pylist()
    return [entry for entry, tried_again in zip(earlier, again, strict=True) if not tried_again]
