"""The life of a store's folder: a job starts, saves parts that appear whole with a record for each, and closes the store."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from densefeat.base import output_errors, sync
from densefeat.errors import OutputError
from densefeat.store.failures import read_failures, write_failures
from densefeat.store.layout import Layout
from densefeat.store.manifest import Failure, Manifest, PartRecord, list_finished_parts, read_manifest, save_record
from densefeat.store.outputs import remove_leftovers, remove_work


def start_job(layout: Layout, manifest: Manifest) -> None:
    """Make ``manifest`` the store's, and remove from the folder what does not belong to its job."""
    with output_errors(layout.root):
        for folder in (layout.data, layout.work, layout.records):
            folder.mkdir(parents=True, exist_ok=True)
    manifest.save(layout)
    remove_leftovers(layout, manifest)


def save_part(layout: Layout, round_id: str, record: PartRecord) -> None:
    """Record a part; if it is finished, move it from ``work/`` to ``data/`` first."""
    _check_round(layout, round_id)
    record = replace(record, bytes=layout.unfinished(record.part).stat().st_size)
    if record.finished:
        with output_errors(layout.part(record.part)):
            os.replace(layout.unfinished(record.part), layout.part(record.part))
        with suppress(OSError):  # some file systems cannot sync a folder
            sync(layout.data)
    save_record(layout, round_id, record)


def close_store(layout: Layout, manifest: Manifest, tiled: pa.LargeStringArray | None = None) -> None:
    """Write ``failures.parquet``, then the manifest that names all parts, and remove ``work/``.

    ``tiled``: paths of images of which tiles were skipped; one that has neither a row nor a failure becomes a failure itself.
    """
    _check_round(layout, manifest.round_id)
    records = list_finished_parts(layout, manifest)
    failures = collect_failures(layout, manifest, records)
    if tiled is not None:
        blank = tiled.filter(pa.array(~find_known_paths(tiled, layout, records, [failure for failure, _ in failures])))
        first_part = manifest.rounds[-1].first_part
        failures += [(Failure(path, "tile", "no tile with enough content"), first_part) for path in blank.to_pylist()]
    write_failures(layout.failures, failures)
    replace(manifest, parts=tuple(records), complete=True).save(layout)
    remove_work(layout)


def _check_round(layout: Layout, round_id: str) -> None:
    current = read_manifest(layout)
    if current is None or current.round_id != round_id:
        raise OutputError(f"output {str(layout.root)!r} was started anew by another process; this one ends")


def collect_failures(layout: Layout, manifest: Manifest, records: Sequence[PartRecord]) -> list[tuple[Failure, int]]:
    """Return the failures of all rounds with their parts, except those that the last round has tried again.

    ``records``: of all finished parts.
    """
    first_part = manifest.rounds[-1].first_part
    failures = [(failure, record.part) for record in records for failure in record.failures]
    earlier = read_failures(layout, first_part)
    if earlier:
        rows = read_paths(layout, [record for record in records if record.part >= first_part])
        suspects = pa.array({failure.path for failure, _ in earlier}, pa.large_string())
        again = {failure.path for failure, _ in failures}
        again |= set(rows.filter(pc.is_in(rows, value_set=suspects)).to_pylist())
        earlier = [(failure, part) for failure, part in earlier if failure.path not in again]
    return earlier + failures


def find_known_paths(
    paths: pa.LargeStringArray, layout: Layout, records: Sequence[PartRecord], failures: Sequence[Failure]
) -> np.ndarray:
    """Return bool, for each path: whether it has a row in these parts or is among the failures."""
    failed = pa.array([failure.path for failure in failures], pa.large_string())
    mask = np.zeros(len(paths), bool)
    for known in (read_paths(layout, records).combine_chunks(), failed):
        mask |= pc.is_in(paths, value_set=known).to_numpy(zero_copy_only=False)
    return mask


def read_paths(layout: Layout, records: Sequence[PartRecord]) -> pa.ChunkedArray:
    """Read the ``path`` of every row of these parts."""
    empty = pa.chunked_array([], pa.large_string())
    tables = [pq.read_table(layout.part(record.part), columns=["path"], partitioning=None) for record in records]
    return pa.concat_tables(tables).column("path").cast(pa.large_string()) if tables else empty
