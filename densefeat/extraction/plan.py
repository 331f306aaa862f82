"""What a job has to do: start, go on, add what is new, or refuse because it would mix rows of two kinds."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.base import Interrupted, Ranks, StopRequest
from densefeat.errors import OutputError, UsageError
from densefeat.extraction.tiling import Tiling
from densefeat.images import Selected, Source, printable_key
from densefeat.store import (
    Failure,
    Layout,
    Manifest,
    PartRecord,
    Round,
    all_failures,
    begin,
    close,
    earlier_failures,
    finished_parts,
    have_outcome,
    read_manifest,
    read_record,
    read_records,
    remove_work,
    row_paths,
    write_failures,
)


@dataclass
class Plan:
    """``source``: what the manifest's last round extracts, cut into parts of ``part_rows`` positions."""

    layout: Layout
    manifest: Manifest
    source: Source
    part_rows: int

    @property
    def parts(self) -> int | None:
        """None where the input's length is not known."""
        return None if self.source.length is None else -(-self.source.length // self.part_rows)

    @property
    def first_part(self) -> int:
        return self.manifest.rounds[-1].first_part

    def range_of(self, part: int) -> tuple[int, int]:
        """Positions of a part, by its number in the store."""
        start = (part - self.first_part) * self.part_rows
        stop = start + self.part_rows
        return start, stop if self.source.length is None else min(stop, self.source.length)

    def records(self) -> dict[int, PartRecord]:
        """Of this round's parts, finished or begun."""
        return {record.part: record for record in read_records(self.layout, self.manifest)}

    def record(self, part: int) -> PartRecord | None:
        return read_record(self.layout, self.manifest, self.layout.record(part))

    def belongs(self, part: int, ranks: Ranks) -> bool:
        return part % ranks.world == ranks.rank

    def to_do(self, records: dict[int, PartRecord], ranks: Ranks) -> Iterator[int]:
        """Numbers of the parts that a process has to extract or finish, without end where the length is not known."""
        ended = [part for part, record in records.items() if record.finished and record.reached - record.start < self.part_rows]
        parts = range(self.first_part, self.first_part + self.parts) if self.parts is not None else count(self.first_part)
        for part in parts:
            if self.parts is None and ended and part > ended[0]:
                return
            if self.belongs(part, ranks) and not (part in records and records[part].finished):
                yield part

    def positions_left(self, records: dict[int, PartRecord], ranks: Ranks) -> int | None:
        if self.parts is None:
            return None
        ranges = {part: self.range_of(part) for part in self.to_do(records, ranks)}
        return sum(stop - (records[part].reached if part in records else start) for part, (start, stop) in ranges.items())


@dataclass(frozen=True)
class Input:
    """``listing``: all of the input; ``view``: turns it, or some of it, into what is extracted (tiles, or itself).

    ``images``, ``options``: what it was opened by, for the record.
    """

    images: str
    options: dict[str, Any]
    listing: Source
    view: Tiling

    @cached_property
    def fingerprint(self) -> str:
        """Of the listing; taken once, since a table is read for it."""
        return self.listing.fingerprint()

    def fingerprint_of(self, source: Source) -> str:
        """Of what is extracted, which without tiles may be the listing itself."""
        return self.fingerprint if source is self.listing else source.fingerprint()


def plan(
    layout: Layout, given: Input, settings: dict[str, Any], provenance: dict[str, Any], overwrite: bool, update: bool
) -> Plan | None:
    """Make the folder ready for this job; None where all of it is done already.

    Raises UsageError where the folder holds rows made otherwise or of another input, OutputError where it is no store.
    """
    current = read_manifest(layout)  # also before overwriting: another program's is not ours to replace
    if current is None or overwrite:
        source = given.view(given.listing)
        round_ = Round(0, given.fingerprint, given.fingerprint_of(source), source.length)
        return _started(layout, Manifest(settings, provenance, given.images, (round_,)), source)
    _refuse_other_settings(layout, current.settings, settings)
    _refuse_damage(layout, current)
    if update:
        return _updated(layout, current, given, provenance)
    _refuse_other_place(layout, current, given)
    if given.fingerprint != current.rounds[-1].listing:
        _refuse_other_input(layout, current, given)
    if current.complete:
        remove_work(layout)
        return None
    return _started(layout, replace(current, provenance=provenance), _source_of_round(layout, current, given))


def _started(layout: Layout, manifest: Manifest, source: Source) -> Plan:
    begin(layout, manifest)
    return Plan(layout, manifest, source, manifest.settings["part_rows"])


def join(layout: Layout, given: Input, settings: dict[str, Any]) -> Plan | None:
    """The plan that rank 0 has made, for another process of the same job."""
    current = read_manifest(layout)
    if current is None:
        raise OutputError(f"output {str(layout.root)!r}: no manifest that rank 0 wrote; do all machines see the same folder?")
    _refuse_other_settings(layout, current.settings, settings)
    if current.complete:
        return None
    if given.fingerprint != current.rounds[-1].listing:
        raise OutputError(f"input {given.images!r}: this process lists other images than rank 0")
    return Plan(layout, current, _source_of_round(layout, current, given), settings["part_rows"])


def finish(planned: Plan, given: Input) -> None:
    """Close the store when every part is there; images without any tile of enough content become failures."""
    skipped = any(record.skipped for record in planned.records().values())
    close(planned.layout, planned.manifest, _comparable(given.listing.keys()) if skipped else None)


def interrupted(planned: Plan, stop: StopRequest) -> Interrupted:
    done = sum(record.reached - record.start for record in planned.records().values())
    length = planned.source.length
    of = "" if length is None else f" of {length:,}"
    goes_on = "the same command (without --overwrite) goes on from there"
    return Interrupted(f"interrupted after {done:,}{of} images; {goes_on}", stop.exit_code)


def _source_of_round(layout: Layout, manifest: Manifest, given: Input) -> Source:
    """What the last round extracts: all of the listing, or of an update what earlier rounds did not have."""
    last = manifest.rounds[-1]
    listing = given.listing
    if len(manifest.rounds) > 1:
        failures = [failure for failure, _ in earlier_failures(layout, last.first_part)]
        listing = Selected(listing, np.flatnonzero(~_known_positions(layout, manifest.parts, failures, listing)))
    source = given.view(listing)
    if given.fingerprint_of(source) != last.fingerprint:
        raise UsageError(
            f"the images of {given.images!r} are not as they were when {str(layout.root)!r} was begun: some have other sizes,"
            " or can be read now that could not; --overwrite starts over"
        )
    return source


def _updated(layout: Layout, current: Manifest, given: Input, provenance: dict[str, Any]) -> Plan | None:
    """A new round for the images that the store does not have; those whose reading failed are tried again."""
    asked = ({"image_column": made["input_options"]["image_column"]} for made in (current.provenance, provenance))
    _refuse_other_settings(layout, *asked)  # a round's fingerprint does not tell the columns of the ones before it
    listing = given.fingerprint
    if not current.complete and listing == current.rounds[-1].listing:
        return _started(layout, replace(current, provenance=provenance), _source_of_round(layout, current, given))
    if not current.complete and current.settings["tiles"]:
        raise UsageError(
            f"{str(layout.root)!r} is not finished, and may have some tiles of an image and not the others: finish it with the"
            " images it was begun with before --update, or --overwrite"
        )
    records = tuple(finished_parts(layout, current))
    failures = all_failures(layout, current, records) if not current.complete else earlier_failures(layout, sys.maxsize)
    known = _known_positions(layout, records, [failure for failure, _ in failures], given.listing)
    removed = _count_removed(layout, records, given.listing)
    if known.all() and not removed and listing != current.rounds[-1].listing and current.complete:
        raise UsageError(f"{_different(layout, given)}: their order, columns or labels differ: --overwrite starts over")
    extended = replace(
        current, images=given.images, provenance=provenance, parts=records, removed=removed, complete=bool(known.all())
    )
    if extended.complete:
        rounds = (*current.rounds[:-1], replace(current.rounds[-1], listing=listing))
    else:
        source = given.view(Selected(given.listing, np.flatnonzero(~known)))
        rounds = (*current.rounds, Round(_following_part(records), listing, given.fingerprint_of(source), source.length))
    if not current.complete:  # the finished parts of an unfinished round stand for all of it from now on
        write_failures(layout.failures, failures)
    extended = replace(extended, rounds=rounds)
    if not extended.complete:
        return _started(layout, extended, source)
    extended.save(layout)
    remove_work(layout)
    return None


def _known_positions(layout: Layout, records: Sequence[PartRecord], failures: list[Failure], listing: Source) -> np.ndarray:
    """bool, for each position of the listing: whether these parts have its row, or its failure is a lasting one."""
    lasting = [failure for failure in failures if failure.stage != "read"]
    return have_outcome(_comparable(listing.keys()), layout, records, lasting)


def _count_removed(layout: Layout, records: Sequence[PartRecord], listing: Source) -> int:
    """Images that the store has rows of and the listing does not."""
    stored = row_paths(layout, records).unique()
    return len(stored) - int(pc.sum(pc.is_in(stored, value_set=_comparable(listing.keys()))).as_py() or 0)


def _comparable(keys: pa.LargeBinaryArray) -> pa.LargeStringArray:
    """Keys as failures show them."""
    try:
        return keys.cast(pa.large_string())
    except pa.ArrowInvalid:  # names that are not UTF-8
        return pa.array([printable_key(key.decode("utf-8", "surrogateescape")) for key in keys.to_pylist()], pa.large_string())


def _refuse_other_settings(layout: Layout, made: dict[str, Any], asked: dict[str, Any]) -> None:
    different = [name for name in {**made, **asked} if made.get(name) != asked.get(name)]
    if different:
        told = "; ".join(f"{name} {made.get(name)!r} there, {asked.get(name)!r} asked" for name in different)
        raise UsageError(f"output {str(layout.root)!r} was made otherwise: {told}. Choose another --out, or --overwrite")


def _refuse_other_input(layout: Layout, current: Manifest, given: Input) -> None:
    message = _different(layout, given)
    if given.listing.length is None:
        raise UsageError(f"{message}: --overwrite starts over")
    if not current.complete:
        raise UsageError(f"{message}, which is not finished. --update extracts those that it lacks, --overwrite starts over")
    failures = [failure for failure, _ in earlier_failures(layout, sys.maxsize)]
    retried = _known_positions(layout, current.parts, [replace(failure, stage="") for failure in failures], given.listing)
    added, removed = int((~retried).sum()), _count_removed(layout, current.parts, given.listing)
    if not added and not removed:
        raise UsageError(f"{message}: their order, columns or labels differ: --overwrite starts over")
    raise UsageError(
        f"{message}: {added:,} were added and {removed:,} removed. --update extracts those that were added,"
        " --overwrite starts over"
    )


def _different(layout: Layout, given: Input) -> str:
    return f"the images of {given.images!r} are not those of {str(layout.root)!r}"


def _refuse_other_place(layout: Layout, current: Manifest, given: Input) -> None:
    """The same names elsewhere may be other images."""
    if current.images != given.images:
        raise UsageError(
            f"{str(layout.root)!r} was made of the images at {current.images!r}, not {given.images!r}: --update if they are the"
            " same and have moved, --overwrite to start over, or choose another --out"
        )


def _following_part(records: Sequence[PartRecord]) -> int:
    return 1 + max((record.part for record in records), default=-1)


def _refuse_damage(layout: Layout, manifest: Manifest) -> None:
    """Parts that the manifest names are there, as they were written."""
    for record in manifest.parts:
        path = layout.part(record.part)
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise OutputError(f"{path} is missing, or not as it was written: --overwrite starts over")
