"""Extracting damaged parts again: a closed store is opened again, without these parts, as if its job had not come to them."""

from collections.abc import Sequence
from dataclasses import replace

from densefeat.base import output_errors
from densefeat.errors import OutputError
from densefeat.store.failures import read_failures
from densefeat.store.layout import Layout
from densefeat.store.manifest import Manifest, PartRecord, save_record


def can_redo(manifest: Manifest, record: PartRecord) -> bool:
    """Check whether a part can be extracted again by its number.

    Of parts of earlier rounds the images have no such numbers any more.
    """
    first_part = manifest.rounds[-1].first_part
    return not first_part if manifest.complete else record.part >= first_part


def redo_parts(layout: Layout, manifest: Manifest, damaged: Sequence[PartRecord]) -> Manifest:
    """Forget damaged parts, so that the job extracts them again; return the store's manifest without them."""
    numbers = {record.part for record in damaged}
    with output_errors(layout.root):
        for number in numbers:  # known to be the store's by its records, whatever is in it now
            if not layout.part(number).is_symlink():
                layout.part(number).unlink(missing_ok=True)
    if manifest.complete:
        return _open_again(layout, manifest, numbers)
    with output_errors(layout.root):
        for number in numbers:
            layout.record(number).unlink()
    return manifest


def _open_again(layout: Layout, manifest: Manifest, damaged: set[int]) -> Manifest:
    """Turn a closed store of one round into one that is not closed: the records of its sound parts are written again."""
    try:
        failures = read_failures(layout, manifest)
    except OutputError:  # they have gone, too: parts that may have had any are extracted again
        failures = []
        damaged |= {record.part for record in manifest.parts if record.rows + record.skipped < record.reached - record.start}
    with output_errors(layout.root):
        layout.records.mkdir(parents=True, exist_ok=True)
    for record in manifest.parts:
        if record.part not in damaged:
            own = tuple(failure for failure, part in failures if part == record.part)
            save_record(layout, manifest.round_id, replace(record, failures=own))
    opened = replace(manifest, parts=(), complete=False, failures_checksum="")
    opened.save(layout)
    return opened
