"""What a job has to do: start, resume, or extract what was added; or refuse, since it would mix rows of two kinds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.base import Interrupted, Ranks, StopRequest
from densefeat.errors import OutputError, UsageError
from densefeat.extraction.settings import ExtractJob, JobInput
from densefeat.images import SelectedSource, Source, printable_key
from densefeat.store import (
    Failure,
    Layout,
    Manifest,
    PartRecord,
    Round,
    close_store,
    collect_failures,
    find_known_paths,
    list_finished_parts,
    read_failures,
    read_manifest,
    read_paths,
    read_record,
    read_records,
    remove_work,
    start_job,
    write_failures,
)


@dataclass
class Plan:
    """The parts of a job. ``source`` is what the manifest's last round extracts, in parts of ``part_rows`` positions."""

    layout: Layout
    manifest: Manifest
    source: Source
    part_rows: int

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
    current = read_manifest(layout)  # read before overwriting, too: a folder of another program must not be replaced
    if current is None or job.options.overwrite:
        source = job.input.tiling.cut(job.input.listing)
        first = Round(0, job.input.fingerprint, job.input.fingerprint_source(source), source.length)
        return _start_round(layout, Manifest(job.settings, job.provenance, job.input.images, (first,)), source)
    _refuse_other_settings(layout, current.settings, job.settings)
    _refuse_damage(layout, current)
    if job.options.update:
        return _open_update(layout, current, job.input, job.provenance)
    _refuse_other_place(layout, current, job.input)
    if job.input.fingerprint != current.rounds[-1].listing:
        _refuse_other_input(layout, current, job.input)
    if current.complete:
        remove_work(layout)
        return None
    return _resume_round(layout, current, job.input, job.provenance)


def join_plan(job: ExtractJob, layout: Layout) -> Plan | None:
    """Return the plan that rank 0 has made, for another process of the same job."""
    current = read_manifest(layout)
    if current is None:
        raise OutputError(f"output {str(layout.root)!r}: rank 0 wrote no manifest there; all machines must see the same folder")
    _refuse_other_settings(layout, current.settings, job.settings)
    if current.complete:
        return None
    if job.input.fingerprint != current.rounds[-1].listing:
        raise OutputError(f"input {job.input.images!r}: this process lists other images than rank 0")
    return Plan(layout, current, _open_round_source(layout, current, job.input), job.settings["part_rows"])


def close_plan(plan: Plan, job_input: JobInput) -> None:
    """Close the store when every part is there; images without any tile of enough content become failures."""
    skipped = any(record.skipped for record in plan.read_records().values())
    close_store(plan.layout, plan.manifest, _printable_keys(job_input.listing.keys()) if skipped else None)


def _start_round(layout: Layout, manifest: Manifest, source: Source) -> Plan:
    start_job(layout, manifest)
    return Plan(layout, manifest, source, manifest.settings["part_rows"])


def _resume_round(layout: Layout, current: Manifest, job_input: JobInput, provenance: dict[str, Any]) -> Plan:
    return _start_round(layout, replace(current, provenance=provenance), _open_round_source(layout, current, job_input))


def _open_round_source(layout: Layout, manifest: Manifest, job_input: JobInput) -> Source:
    """Return what the last round extracts: the whole listing, or for an update what earlier rounds did not have."""
    last = manifest.rounds[-1]
    listing = job_input.listing
    if len(manifest.rounds) > 1:
        failures = [failure for failure, _ in read_failures(layout, last.first_part)]
        listing = SelectedSource(listing, np.flatnonzero(~_find_known_positions(layout, manifest.parts, failures, listing)))
    source = job_input.tiling.cut(listing)
    if job_input.fingerprint_source(source) != last.fingerprint:
        raise UsageError(
            f"some images of {job_input.images!r} have changed since {str(layout.root)!r} was started: their sizes differ, or"
            " they can be read now and could not then; --overwrite starts over"
        )
    return source


def _open_update(layout: Layout, current: Manifest, job_input: JobInput, provenance: dict[str, Any]) -> Plan | None:
    """Start a round for the images that the store does not have; images that could not be read are tried again."""
    # a round's fingerprint does not include the image column of the rounds before it
    columns = [{"image_column": made["input_options"]["image_column"]} for made in (current.provenance, provenance)]
    _refuse_other_settings(layout, *columns)
    listing = job_input.fingerprint
    if not current.complete and listing == current.rounds[-1].listing:
        return _resume_round(layout, current, job_input, provenance)
    if not current.complete and current.settings["tiles"]:
        raise UsageError(
            f"{str(layout.root)!r} is not finished, and may have some tiles of an image and not the others: finish it with the"
            " images it was started with before --update, or --overwrite"
        )
    records = tuple(list_finished_parts(layout, current))
    failures = collect_failures(layout, current, records) if not current.complete else read_failures(layout)
    known = _find_known_positions(layout, records, [failure for failure, _ in failures], job_input.listing)
    removed = _count_removed(layout, records, job_input.listing)
    if known.all() and not removed and listing != current.rounds[-1].listing and current.complete:
        raise UsageError(
            f"{_describe_other_input(layout, job_input)}: their order, columns or labels differ: --overwrite starts over"
        )
    extended = replace(
        current, images=job_input.images, provenance=provenance, parts=records, removed=removed, complete=bool(known.all())
    )
    if not current.complete:  # from now on the finished parts of the unfinished round are all of that round
        write_failures(layout.failures, failures)
    if extended.complete:
        rounds = (*current.rounds[:-1], replace(current.rounds[-1], listing=listing))
        replace(extended, rounds=rounds).save(layout)
        remove_work(layout)
        return None
    source = job_input.tiling.cut(SelectedSource(job_input.listing, np.flatnonzero(~known)))
    added = Round(_next_part(records), listing, job_input.fingerprint_source(source), source.length)
    return _start_round(layout, replace(extended, rounds=(*current.rounds, added)), source)


def _find_known_positions(
    layout: Layout, records: Sequence[PartRecord], failures: list[Failure], listing: Source
) -> np.ndarray:
    """Return bool ``(len(listing),)``: whether these parts have an image's row, or its failure is a lasting one."""
    lasting = [failure for failure in failures if failure.stage != "read"]
    return find_known_paths(_printable_keys(listing.keys()), layout, records, lasting)


def _count_removed(layout: Layout, records: Sequence[PartRecord], listing: Source) -> int:
    """Count the images that have rows in the store and are not in the listing."""
    stored = read_paths(layout, records).unique()
    return len(stored) - int(pc.sum(pc.is_in(stored, value_set=_printable_keys(listing.keys()))).as_py() or 0)


def _printable_keys(keys: pa.LargeBinaryArray) -> pa.LargeStringArray:
    """Return keys in the form in which rows and failures hold them."""
    try:
        return keys.cast(pa.large_string())
    except pa.ArrowInvalid:  # names that are not UTF-8
        return pa.array([printable_key(key.decode("utf-8", "surrogateescape")) for key in keys.to_pylist()], pa.large_string())


def _next_part(records: Sequence[PartRecord]) -> int:
    return 1 + max((record.part for record in records), default=-1)


def _refuse_other_settings(layout: Layout, recorded: dict[str, Any], requested: dict[str, Any]) -> None:
    different = [name for name in {**recorded, **requested} if recorded.get(name) != requested.get(name)]
    if different:
        differences = "; ".join(f"{name} is {recorded.get(name)!r} there, not {requested.get(name)!r}" for name in different)
        raise UsageError(
            f"output {str(layout.root)!r} was made with other settings: {differences}. Choose another --out, or --overwrite"
        )


def _refuse_other_input(layout: Layout, current: Manifest, job_input: JobInput) -> None:
    message = _describe_other_input(layout, job_input)
    if job_input.listing.length is None:
        raise UsageError(f"{message}: --overwrite starts over")
    if not current.complete:
        raise UsageError(f"{message}, which is not finished. --update extracts those that it lacks, --overwrite starts over")
    failures = [replace(failure, stage="") for failure, _ in read_failures(layout)]
    known = _find_known_positions(layout, current.parts, failures, job_input.listing)
    added, removed = int((~known).sum()), _count_removed(layout, current.parts, job_input.listing)
    if not added and not removed:
        raise UsageError(f"{message}: their order, columns or labels differ: --overwrite starts over")
    raise UsageError(
        f"{message}: {added:,} were added and {removed:,} removed. --update extracts those that were added,"
        " --overwrite starts over"
    )


def _describe_other_input(layout: Layout, job_input: JobInput) -> str:
    return f"the images of {job_input.images!r} are not those of {str(layout.root)!r}"


def _refuse_other_place(layout: Layout, current: Manifest, job_input: JobInput) -> None:
    """Refuse images from another place: the same names there may be other images."""
    if current.images != job_input.images:
        raise UsageError(
            f"{str(layout.root)!r} was made of the images at {current.images!r}, not {job_input.images!r}: --update if they are"
            " the same and have moved, --overwrite to start over, or choose another --out"
        )


def _refuse_damage(layout: Layout, manifest: Manifest) -> None:
    """Refuse a store of which a part is missing, or has another size than recorded."""
    for record in manifest.parts:
        path = layout.part(record.part)
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise OutputError(f"{path} is missing or its size has changed since it was written: --overwrite starts over")
