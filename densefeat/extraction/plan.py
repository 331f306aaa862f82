"""What a job has to do: start, resume, or extract what was added; or refuse, since it would mix rows of two kinds."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.base import Interrupted, Ranks, StopRequest
from densefeat.errors import OutputError, UsageError
from densefeat.extraction.changes import (
    add_round,
    add_untried,
    describe_changes,
    find_stale,
    record_stamps,
    refuse_fewer_rows,
    refuse_other_labels,
    refuse_other_settings,
)
from densefeat.extraction.settings import ExtractJob, JobInput, has_rows_of_parts
from densefeat.images import SelectedSource, Source, printable_keys
from densefeat.store import (
    Failure,
    Layout,
    Manifest,
    PartRecord,
    RecordedStamps,
    Round,
    can_redo,
    close_store,
    collect_failures,
    find_damaged_parts,
    find_known_paths,
    finish_replacement,
    list_finished_parts,
    read_failures,
    read_manifest,
    read_paths,
    read_record,
    read_records,
    read_stamps,
    redo_parts,
    remove_work,
    start_job,
    write_failures,
    write_stamps,
)

_log = logging.getLogger(__name__)


@dataclass
class Plan:
    """The parts of a job. ``source`` is what the manifest's last round extracts, in parts of ``part_rows`` positions.

    ``images``: the same before they are cut into tiles.
    """

    layout: Layout
    manifest: Manifest
    images: Source
    source: Source

    @property
    def part_rows(self) -> int:
        return self.manifest.settings["part_rows"]

    @property
    def parts(self) -> int | None:
        """The number of parts; None if the length of the input is not known."""
        return None if self.source.length is None else -(-self.source.length // self.part_rows)

    @property
    def first_part(self) -> int:
        return self.manifest.rounds[-1].first_part

    def part_range(self, part: int) -> tuple[int, int]:
        """Return the first position of a part and the one after its last."""
        start = (part - self.first_part) * self.part_rows
        stop = start + self.part_rows
        return start, stop if self.source.length is None else min(stop, self.source.length)

    def read_records(self) -> dict[int, PartRecord]:
        """Read the records of this round's parts, finished or not, by the number of the part."""
        return {record.part: record for record in read_records(self.layout, self.manifest)}

    def finished_file(self, part: int) -> Path:
        """Return where a part is once it is finished."""
        return self.layout.unfinished(part) if self.manifest.waits else self.layout.part(part)

    def read_record(self, part: int) -> PartRecord | None:
        return read_record(self.layout, self.manifest, self.layout.record(part))

    def belongs_to(self, part: int, ranks: Ranks) -> bool:
        """Tell whether a part is this process's share."""
        return part % ranks.world == ranks.rank

    def parts_left(self, records: dict[int, PartRecord], ranks: Ranks) -> Iterator[int]:
        """Yield the parts that a process has to extract or finish, without end if the length of the input is not known."""
        ended = [part for part, record in records.items() if record.finished and record.reached - record.start < self.part_rows]
        parts = range(self.first_part, self.first_part + self.parts) if self.parts is not None else count(self.first_part)
        for part in parts:
            if self.parts is None and ended and part > ended[0]:
                return
            if self.belongs_to(part, ranks) and not (part in records and records[part].finished):
                yield part

    def positions_left(self, records: dict[int, PartRecord], ranks: Ranks) -> int | None:
        if self.parts is None:
            return None
        ranges = {part: self.part_range(part) for part in self.parts_left(records, ranks)}
        return sum(stop - (records[part].reached if part in records else start) for part, (start, stop) in ranges.items())

    def interruption(self, stop: StopRequest) -> Interrupted:
        """Return the error that ends a job after a stop request, with what is done so far."""
        done = sum(record.reached - record.start for record in self.read_records().values())
        of_all = "" if self.source.length is None else f" of {self.source.length:,}"
        message = f"interrupted after {done:,}{of_all} images; the same command (without --overwrite) resumes there"
        return Interrupted(message, stop.exit_code)


def open_plan(job: ExtractJob, layout: Layout) -> Plan | None:
    """Prepare the store's folder for this job; return None if nothing is left to do.

    Raises UsageError if the folder holds rows of other settings or another input, OutputError if it is not a store.
    """
    finish_replacement(layout)
    current = read_manifest(layout)  # read before overwriting, too: a folder of another program must not be replaced
    if current is None or job.options.overwrite:
        return _start_store(job, layout)
    if has_nothing(layout, current):  # the first job ended before its first row, perhaps because of a setting
        return _start_store(job, layout)
    refuse_other_settings(layout, current.settings, job.settings)
    damaged = find_damaged_parts(layout, list_finished_parts(layout, current))
    recorded = read_stamps(layout, current)
    stale = find_stale(layout, current, recorded, job.input)
    if not job.options.update:
        _refuse_changes(layout, current, stale, job.input)
    if beyond_redo := [record for record in damaged if not can_redo(current, record)]:
        stale |= _find_lost(layout, current, recorded, beyond_redo, job)
    current = _redo_damaged(layout, current, damaged)  # the input is known by now to have what they were made of
    if job.options.update:
        return _open_update(layout, current, recorded, stale, job)
    if current.complete:
        remove_work(layout)
        record_stamps(layout, current, recorded, job.input)
        return None
    return _resume_round(layout, current, recorded, job)


def has_nothing(layout: Layout, manifest: Manifest) -> bool:
    """Check for a store in which no job has finished a batch yet."""
    return not (manifest.complete or manifest.parts or len(manifest.rounds) > 1 or any(read_records(layout, manifest)))


def join_plan(job: ExtractJob, layout: Layout) -> Plan | None:
    """Return the plan that rank 0 has made, for another process of the same job."""
    current = read_manifest(layout)
    if current is None:
        raise OutputError(f"output {str(layout.root)!r}: rank 0 wrote no manifest there; all machines must see the same folder")
    refuse_other_settings(layout, current.settings, job.settings)
    if current.complete:
        return None
    if job.input.fingerprint != current.rounds[-1].listing:
        raise OutputError(f"input {job.input.images!r}: this process lists other images than rank 0")
    return _open_round(layout, current, read_stamps(layout, current), job.input)


def close_plan(plan: Plan, job_input: JobInput) -> None:
    """Close the store when every part is there; images without any tile of enough content become failures."""
    skipped = any(record.skipped for record in plan.read_records().values())
    first = len(plan.manifest.rounds) == 1  # which has tried nothing again, and may be a stream
    images = pa.array([], pa.large_string()) if first else printable_keys(plan.images.keys())
    close_store(plan.layout, plan.manifest, images, printable_keys(job_input.listing.keys()) if skipped else None)


def _start_store(job: ExtractJob, layout: Layout) -> Plan:
    listing = job.input.listing
    source = job.input.tiling.cut(listing)
    first = Round(0, job.input.fingerprint, job.input.fingerprint_source(source), source.length)
    manifest = Manifest(job.settings, job.provenance, job.input.images, (first,))
    start_job(layout, manifest)
    record_stamps(layout, manifest, read_stamps(layout, manifest), job.input)
    return Plan(layout, manifest, listing, source)


def _resume_round(layout: Layout, current: Manifest, recorded: RecordedStamps, job: ExtractJob) -> Plan:
    """Go on with the last round. Images of it that have changed meanwhile are not extracted yet: their stamps are renewed."""
    manifest = replace(current, provenance=job.provenance)
    plan = _open_round(layout, manifest, recorded, job.input)
    start_job(layout, manifest)
    record_stamps(layout, manifest, recorded, job.input)
    return plan


def _open_round(layout: Layout, manifest: Manifest, recorded: RecordedStamps, job_input: JobInput) -> Plan:
    """Return the plan of the last round: the whole listing, or for an update what earlier rounds did not have."""
    images: Source = job_input.listing
    if len(manifest.rounds) > 1:
        failures = [failure for failure, _ in read_failures(layout, manifest, manifest.rounds[-1].first_part)]
        stamps = job_input.stamps
        again = stamps.spread(recorded.find_again(stamps.files, len(manifest.rounds)))
        known = _find_known_positions(layout, manifest.parts, failures, images) & ~again
        images = SelectedSource(images, np.flatnonzero(~known))
    source = job_input.tiling.cut(images)
    if job_input.fingerprint_source(source) != manifest.rounds[-1].fingerprint:
        raise UsageError(
            f"some images of {job_input.images!r} have changed since {str(layout.root)!r} was started: their sizes differ, or"
            " they can be read now and could not then; --overwrite starts over"
        )
    return Plan(layout, manifest, images, source)


def _open_update(
    layout: Layout, current: Manifest, recorded: RecordedStamps, stale: np.ndarray, job: ExtractJob
) -> Plan | None:
    """Start a round for images that the store does not have, that have changed, or that could not be read."""
    job_input = job.input
    # a round's fingerprint does not include the image column of the rounds before it
    columns = [{"image_column": made["input_options"]["image_column"]} for made in (current.provenance, job.provenance)]
    refuse_other_settings(layout, *columns)
    same_listing = job_input.fingerprint == current.rounds[-1].listing
    if not current.complete and same_listing and not stale.any():
        return _resume_round(layout, current, recorded, job)
    if job_input.listing.length is None:
        if same_listing and not stale.any():
            return None
        raise UsageError(
            f"{_describe_other_input(layout, job_input)}, and how many there are is not known: --overwrite starts over"
        )
    if not current.complete and has_rows_of_parts(current.settings):
        raise UsageError(
            f"{str(layout.root)!r} is not finished, and may have some tiles or pages of an image and not the others: finish it"
            " with the images it was started with before --update, or --overwrite"
        )
    if not current.complete:
        stale = add_untried(layout, current, recorded, stale, job_input)
    records = tuple(list_finished_parts(layout, current))
    failures = collect_failures(layout, current)
    rows = find_known_paths(printable_keys(job_input.listing.keys()), _list_files(layout, records), [])
    known = rows | _find_known_positions(layout, (), [failure for failure, _ in failures], job_input.listing)
    removed = _count_removed(layout, records, job_input.listing)
    if known.all() and not stale.any() and not removed and not same_listing and current.complete:
        raise UsageError(
            f"{_describe_other_input(layout, job_input)}: their order, columns or labels differ: --overwrite starts over"
        )
    refuse_other_labels(layout, records, job_input, stale)
    refuse_fewer_rows(layout, records, job_input, stale)
    last = replace(current.rounds[-1], dropped=True) if current.waits else current.rounds[-1]
    wanted = ~known | stale
    extended = replace(
        current,
        images=job_input.images,
        provenance=job.provenance,
        rounds=(*current.rounds[:-1], last),
        parts=records,
        removed=removed,
        complete=not wanted.any(),
    )
    if not current.complete:  # from now on the finished parts of the unfinished round are all of that round
        extended = replace(extended, failures_checksum=write_failures(layout.failures, failures))
    if extended.complete:
        extended = replace(extended, rounds=(*current.rounds[:-1], replace(last, listing=job_input.fingerprint)))
        extended.save(layout)
        remove_work(layout)
        record_stamps(layout, extended, recorded, job_input)
        return None
    images = SelectedSource(job_input.listing, np.flatnonzero(wanted))
    source = job_input.tiling.cut(images)
    first_part = max([_next_part(records), last.first_part, *(part + 1 for _, part in failures)])
    added = Round(
        first_part, job_input.fingerprint, job_input.fingerprint_source(source), source.length, bool((rows & stale).any())
    )
    manifest = replace(extended, rounds=(*extended.rounds, added))
    # written first: a round that lacks its stamps would extract other images when it is resumed
    write_stamps(layout, manifest, add_round(recorded, job_input, len(manifest.rounds), wanted, stale))
    start_job(layout, manifest)
    return Plan(layout, manifest, images, source)


def _find_known_positions(
    layout: Layout, records: Sequence[PartRecord], failures: list[Failure], listing: Source
) -> np.ndarray:
    """Return bool ``(len(listing),)``: whether these parts have an image's row, or its failure is a lasting one."""
    lasting = [failure for failure in failures if failure.stage not in ("read", "memory")]
    return find_known_paths(printable_keys(listing.keys()), _list_files(layout, records), lasting)


def _list_files(layout: Layout, records: Sequence[PartRecord]) -> list[Path]:
    return [layout.part(record.part) for record in records]


def _count_removed(layout: Layout, records: Sequence[PartRecord], listing: Source) -> int:
    """Count the images that have rows in the store and are not in the listing."""
    stored = read_paths(_list_files(layout, records)).unique()
    return len(stored) - int(pc.sum(pc.is_in(stored, value_set=printable_keys(listing.keys()))).as_py() or 0)


def _next_part(records: Sequence[PartRecord]) -> int:
    return 1 + max((record.part for record in records), default=-1)


def _refuse_other_input(layout: Layout, current: Manifest, job_input: JobInput, stale: np.ndarray) -> None:
    message = _describe_other_input(layout, job_input)
    if job_input.listing.length is None:
        raise UsageError(f"{message}: --overwrite starts over")
    if not current.complete:
        raise UsageError(f"{message}, which is not finished. --update extracts those that it lacks, --overwrite starts over")
    failures = [replace(failure, stage="") for failure, _ in read_failures(layout, current)]
    known = _find_known_positions(layout, current.parts, failures, job_input.listing)
    added, removed = int((~known).sum()), _count_removed(layout, current.parts, job_input.listing)
    if not added and not removed and not stale.any():
        raise UsageError(f"{message}: their order, columns or labels differ: --overwrite starts over")
    changed = f" ({describe_changes(job_input, stale)})" if stale.any() else ""
    again = " and those that have changed" if stale.any() else ""
    raise UsageError(
        f"{message}: {added:,} were added and {removed:,} removed{changed}. --update extracts those that were added{again},"
        " --overwrite starts over"
    )


def _describe_other_input(layout: Layout, job_input: JobInput) -> str:
    return f"the images of {job_input.images!r} are not those of {str(layout.root)!r}"


def _refuse_changes(layout: Layout, current: Manifest, stale: np.ndarray, job_input: JobInput) -> None:
    """Raise UsageError for an input that is not the one that the store was made of, as it was then."""
    _refuse_other_place(layout, current, job_input)
    if job_input.fingerprint != current.rounds[-1].listing:
        _refuse_other_input(layout, current, job_input, stale)
    if stale.any():
        cure = "" if job_input.listing.length is None else "--update extracts those again, "
        changes = describe_changes(job_input, stale)
        raise UsageError(f"{changes} since {str(layout.root)!r} was made: {cure}--overwrite starts over")


def _refuse_other_place(layout: Layout, current: Manifest, job_input: JobInput) -> None:
    """Refuse images from another place: the same names there may be other images."""
    if current.images != job_input.images:
        raise UsageError(
            f"{str(layout.root)!r} was made of the images at {current.images!r}, not {job_input.images!r}: --update if they are"
            " the same and have moved (files of another size or time are extracted again), --overwrite to start over, or choose"
            " another --out"
        )


def _redo_damaged(layout: Layout, manifest: Manifest, damaged: dict[PartRecord, str]) -> Manifest:
    """Forget damaged parts of the last round, and those whose failures are lost, so that the job extracts them again."""
    redone = [record for record in damaged if can_redo(manifest, record)]
    lost_failures = manifest.complete and not _has_failures(layout, manifest)
    if damaged:
        _log.warning("damaged parts, which are extracted again: %d, such as %s", len(damaged), next(iter(damaged.values())))
    return redo_parts(layout, manifest, redone) if redone or lost_failures else manifest


def _has_failures(layout: Layout, manifest: Manifest) -> bool:
    """Check whether the list of failures can be read. Raises OutputError where it cannot, and cannot be made again."""
    try:
        read_failures(layout, manifest)
    except OutputError as error:
        if len(manifest.rounds) > 1:
            raise OutputError(f"{error}; the store has been updated since its first images: --overwrite starts over") from error
        _log.warning("parts that may have had failures are extracted again: %s", error)
        return False
    return True


def _find_lost(
    layout: Layout, manifest: Manifest, recorded: RecordedStamps, damaged: list[PartRecord], job: ExtractJob
) -> np.ndarray:
    """Mark the images of damaged parts of earlier rounds, which an update extracts again: bool ``(len(listing),)``.

    Those that the last round extracts already are left out. Raises OutputError where the images are not known, or are gone.
    """
    first = layout.part(damaged[0].part)
    if not job.options.update:
        raise OutputError(f"{first} is damaged: --update extracts its images again, --overwrite starts over")
    try:
        lost = read_paths(_list_files(layout, damaged))
    except OutputError as error:
        raise OutputError(f"{error}: which images it was of cannot be read: --overwrite starts over") from error
    keys = printable_keys(job.input.listing.keys())
    if not pc.all(pc.is_in(lost, value_set=keys)).as_py():
        raise OutputError(f"{first} is damaged, and some of its images are no longer in the input: --overwrite starts over")
    stamps = job.input.stamps
    again = stamps.spread(recorded.find_again(stamps.files, len(manifest.rounds))) if manifest.waits else False
    return pc.is_in(keys, value_set=lost).to_numpy(zero_copy_only=False) & ~np.asarray(again)
