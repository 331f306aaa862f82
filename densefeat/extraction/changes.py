"""What has changed in the input since a store got its rows: images, by the stamps of their files, and labels."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.errors import OutputError, UsageError
from densefeat.extraction.settings import JobInput, has_rows_of_parts
from densefeat.images import MAX_TILES, RandomAccess, Source, complete_record, printable_keys
from densefeat.store import (
    Layout,
    Manifest,
    PartRecord,
    RecordedStamps,
    find_known_paths,
    read_column,
    read_paths,
    read_records,
    write_stamps,
)

_EXAMPLES = 3  # of changed images in a message
_ROW_KEY = re.compile(r"(.*)#\d+", re.DOTALL)


def find_stale(layout: Layout, manifest: Manifest, recorded: RecordedStamps, job_input: JobInput) -> np.ndarray:
    """Mark the positions whose images have changed since the store got their rows or failures: bool ``(len(listing),)``.

    A stream of unknown length counts as one position.
    """
    stamps = job_input.stamps
    number = len(manifest.rounds)
    changed = recorded.find_changed(stamps)
    if changed.any() and not manifest.complete and not has_rows_of_parts(manifest.settings):
        own = pc.fill_null(pc.equal(recorded.look_up(stamps.files)["round"], number), False).to_numpy()
        if (changed & own).any() and job_input.listing.length is not None:
            records = list(read_records(layout, manifest))
            changed &= ~own | stamps.gather(_find_tried_positions(layout, manifest, records, job_input.listing))
    return stamps.spread(changed)


def add_untried(
    layout: Layout, manifest: Manifest, recorded: RecordedStamps, stale: np.ndarray, job_input: JobInput
) -> np.ndarray:
    """Add to ``stale`` what was to be extracted again by a round that ends unfinished, and of which it keeps nothing."""
    stamps, number = job_input.stamps, len(manifest.rounds)
    earlier = recorded.until({other for other in range(1, number) if not manifest.rounds[other - 1].dropped})
    finished = [] if manifest.waits else [record for record in read_records(layout, manifest) if record.finished]
    tried = _find_tried_positions(layout, manifest, finished, job_input.listing)
    return stamps.spread(stamps.gather(stale | stamps.spread(earlier.find_changed(stamps)) & ~tried))


def _find_tried_positions(layout: Layout, manifest: Manifest, records: Sequence[PartRecord], listing: Source) -> np.ndarray:
    """Mark the positions that have rows or failures in these parts of the unfinished last round."""
    files = [
        layout.part(record.part) if record.finished and not manifest.waits else layout.unfinished(record.part)
        for record in records
    ]
    failures = [failure for record in records for failure in record.failures]
    keys = printable_keys(listing.keys())
    try:
        return find_known_paths(keys, files, failures)
    except OutputError:  # a part that a full disk has damaged: it may have had any of them
        return np.ones(len(keys), bool)


def describe_changes(job_input: JobInput, stale: np.ndarray) -> str:
    """Name the first images that have changed."""
    if job_input.listing.length is None:
        return f"the images of {job_input.images!r} have changed"
    positions = np.flatnonzero(stale)
    names = printable_keys(job_input.listing.keys().take(pa.array(positions[:_EXAMPLES]))).to_pylist()
    more = ", …" if len(positions) > _EXAMPLES else ""
    return f"{len(positions):,} of the images of {job_input.images!r} have changed ({', '.join(names)}{more})"


def add_round(
    recorded: RecordedStamps, job_input: JobInput, round_number: int, wanted: np.ndarray, stale: np.ndarray
) -> RecordedStamps:
    """Add the stamps of the files that a round extracts, and of those that have none yet. Both masks are of positions."""
    stamps = job_input.stamps
    files = stamps.gather(wanted) | recorded.find_missing(stamps)
    return recorded.add(stamps, files, round_number, stamps.gather(stale))


def record_stamps(layout: Layout, manifest: Manifest, recorded: RecordedStamps, job_input: JobInput) -> None:
    """Record the stamps of files that have none yet, or other ones now: before a round has extracted their images."""
    files = recorded.find_missing(job_input.stamps) | recorded.find_changed(job_input.stamps)
    if files.any():
        write_stamps(layout, manifest, recorded.add(job_input.stamps, files, manifest.last_round))


def refuse_fewer_rows(layout: Layout, records: Sequence[PartRecord], job_input: JobInput, stale: np.ndarray) -> None:
    """Raise UsageError where a table that has changed has fewer rows than before.

    Its keys are row numbers: the rows that are left over in the store may be of images that now have other numbers.
    """
    keys = printable_keys(job_input.listing.keys())
    stored = read_paths([layout.part(record.part) for record in records]).unique()
    left_over = stored.filter(pc.invert(pc.is_in(stored, value_set=keys)))
    changed = _find_tables(keys.take(pa.array(np.flatnonzero(stale)))) & _find_tables(left_over)
    if changed:
        raise UsageError(
            f"{min(changed)} has changed, and {str(layout.root)!r} has more rows of it, which may be of images that have other"
            " numbers now: --overwrite starts over"
        )


def _find_tables(keys: pa.LargeStringArray) -> set[str]:
    """Return the tables whose rows these keys number."""
    return {match[1] for key in keys.to_pylist() if (match := _ROW_KEY.fullmatch(key))}


def refuse_other_labels(layout: Layout, records: Sequence[PartRecord], job_input: JobInput, stale: np.ndarray) -> None:
    """Raise UsageError where rows that an update keeps have other labels than their images have now."""
    listing = job_input.listing
    if not listing.labelled or not isinstance(listing, RandomAccess):
        return
    files = [layout.part(record.part) for record in records]
    stored, before = read_paths(files), read_column(files, "label")
    positions = pc.index_in(stored, value_set=printable_keys(listing.keys()))
    kept = pc.and_(pc.is_valid(positions), pc.invert(pa.array(stale).take(positions)))
    stored, before, positions = (column.filter(kept) for column in (stored, before, positions))
    now = listing.label_values().take(positions)
    # a label that is missing is equal to one that is missing
    differs = pc.or_(pc.fill_null(pc.not_equal(before, now), False), pc.xor(pc.is_null(before), pc.is_null(now)))
    if changed := differs.to_numpy(zero_copy_only=False).nonzero()[0].tolist():
        first = changed[0]
        raise UsageError(
            f"{len(changed):,} of the rows of {str(layout.root)!r} have other labels than their images have now"
            f" ({stored[first].as_py()}: {before[first].as_py()!r} there, {now[first].as_py()!r} now): --overwrite starts over"
        )


def refuse_other_settings(layout: Layout, recorded: dict[str, Any], requested: dict[str, Any]) -> None:
    """Raise UsageError where a store was made with other settings, with each that differs."""
    if tiles := recorded.get("tiles"):
        # stores of earlier versions name no such limit, and no scale
        recorded = recorded | {"tiles": {"max_tiles": MAX_TILES, "mpp": None} | tiles}
    if made := recorded.get("preprocessing"):
        recorded = recorded | {"preprocessing": complete_record(made)}
    recorded, requested = _flatten(recorded), _flatten(requested)
    different = [name for name in {**recorded, **requested} if recorded.get(name) != requested.get(name)]
    if different:
        differences = "; ".join(f"{name} is {recorded.get(name)!r} there, not {requested.get(name)!r}" for name in different)
        raise UsageError(
            f"output {str(layout.root)!r} was made with other settings: {differences}. Choose another --out, or --overwrite"
        )


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name each value of nested settings by the names that lead to it, so that a difference is told alone."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name} ") if isinstance(value, dict) else {prefix + name: value}
    return flat
