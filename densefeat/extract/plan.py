"""What a job has to do: start, go on, add what is new, or refuse because it would mix rows of two kinds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.errors import OutputError, UsageError
from densefeat.extract.ranks import Ranks
from densefeat.extract.tiling import Tiling
from densefeat.images.stream import Selected, Source, printable
from densefeat.store.dataset import begin, close, earlier_failures, remove_work
from densefeat.store.layout import Layout
from densefeat.store.manifest import Manifest, PartRecord, Round, read_manifest, read_records
from densefeat.store.reader import Store, finished_parts


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
        return {record.part: record for record in read_records(self.layout, self.manifest.job)}

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


def plan(
    layout: Layout, given: Input, settings: dict[str, Any], provenance: dict[str, Any], overwrite: bool, update: bool
) -> Plan | None:
    """Make the folder ready for this job; None where all of it is done already.

    Raises UsageError where the folder holds rows made otherwise or of another input, OutputError where it is no store.
    """
    current = None if overwrite else read_manifest(layout)
    if current is None:
        source = given.view(given.listing)
        round_ = Round(0, given.listing.fingerprint(), source.fingerprint(), source.length)
        return started(layout, Manifest(settings, provenance, given.images, (round_,)), source)
    refuse_other_settings(layout, current.settings, settings)
    refuse_damage(layout, current)
    listing = given.listing.fingerprint()
    if update:
        return updated(layout, current, given, listing, provenance)
    if listing != current.rounds[-1].listing:
        refuse_other_input(layout, current, given)
    if current.complete:
        remove_work(layout)
        return None
    return started(layout, replace(current, provenance=provenance), source_of_round(layout, current, given))


def started(layout: Layout, manifest: Manifest, source: Source) -> Plan:
    begin(layout, manifest)
    return Plan(layout, manifest, source, manifest.settings["part_rows"])


def join(layout: Layout, given: Input, settings: dict[str, Any]) -> Plan | None:
    """The plan that rank 0 has made, for another process of the same job."""
    current = read_manifest(layout)
    if current is None:
        raise OutputError(f"output {str(layout.root)!r}: no manifest that rank 0 wrote; do all machines see the same folder?")
    refuse_other_settings(layout, current.settings, settings)
    if current.complete:
        return None
    if given.listing.fingerprint() != current.rounds[-1].listing:
        raise OutputError(f"input {given.images!r}: this process lists other images than rank 0")
    return Plan(layout, current, source_of_round(layout, current, given), settings["part_rows"])


def finish(planned: Plan, given: Input) -> None:
    """Close the store when every part is there; images without any tile of enough content become failures."""
    layout, manifest = planned.layout, planned.manifest
    again: set[str] = set()
    if planned.first_part:
        again = set(comparable(planned.source.keys()).to_pylist())
    blank: list[str] = []
    if any(record.skipped for record in planned.records().values()):
        seen = [failure.path for record in planned.records().values() for failure in record.failures]
        stored = row_keys(layout, finished_parts(layout, manifest))
        keys = comparable(given.listing.keys())
        earlier = [failure.path for failure, _ in earlier_failures(layout, planned.first_part)]
        known = is_in(keys, [stored, pa.chunked_array([seen + earlier], pa.large_string())])
        blank = keys.filter(pa.array(~known)).to_pylist()
    close(layout, manifest, again, blank)


def source_of_round(layout: Layout, manifest: Manifest, given: Input) -> Source:
    """What the last round extracts: all of the listing, or of an update what earlier rounds did not have."""
    last = manifest.rounds[-1]
    listing = given.listing
    if len(manifest.rounds) > 1:
        listing = Selected(listing, np.flatnonzero(~known_positions(layout, manifest, given.listing)))
    source = given.view(listing)
    if source.fingerprint() != last.fingerprint:
        raise UsageError(
            f"the images of {given.images!r} have other sizes than when {str(layout.root)!r} was begun: --overwrite starts over"
        )
    return source


def updated(layout: Layout, current: Manifest, given: Input, listing: str, provenance: dict[str, Any]) -> Plan | None:
    """A new round for the images that the store does not have; those whose reading failed are tried again."""
    if not current.complete:
        if listing == current.rounds[-1].listing:
            return started(layout, replace(current, provenance=provenance), source_of_round(layout, current, given))
        current = close(layout, current)  # what is finished stays, the rest counts as new
    first_part = following_part(current)
    known = known_positions(layout, replace(current, rounds=(*current.rounds, Round(first_part, "", "", None))), given.listing)
    removed = count_removed(layout, current, given.listing)
    current = replace(current, removed=removed, provenance=provenance)
    if known.all():
        rounds = (*current.rounds[:-1], replace(current.rounds[-1], listing=listing))
        replace(current, rounds=rounds).save(layout)
        return None
    source = given.view(Selected(given.listing, np.flatnonzero(~known)))
    added = Round(first_part, listing, source.fingerprint(), source.length)
    return started(layout, replace(current, rounds=(*current.rounds, added), complete=False), source)


def known_positions(layout: Layout, manifest: Manifest, listing: Source) -> np.ndarray:
    """bool, for each position of the listing: whether parts before the last round's have its row, or its lasting failure."""
    first_part = manifest.rounds[-1].first_part
    records = [record for record in finished_parts(layout, manifest) if record.part < first_part]
    failed = [failure.path for failure, _ in earlier_failures(layout, first_part) if failure.stage != "read"]
    return is_in(comparable(listing.keys()), [row_keys(layout, records), pa.chunked_array([failed], pa.large_string())])


def count_removed(layout: Layout, manifest: Manifest, listing: Source) -> int:
    """Images that the store has rows of and the listing does not."""
    stored = row_keys(layout, finished_parts(layout, manifest)).unique()
    return len(stored) - int(pc.sum(pc.is_in(stored, value_set=comparable(listing.keys()))).as_py() or 0)


def row_keys(layout: Layout, records: list[PartRecord]) -> pa.ChunkedArray:
    paths = [layout.part(record.part) for record in records]
    empty = pa.chunked_array([], pa.large_string())
    return Store(layout.root, paths, None).column("path").cast(pa.large_string()) if paths else empty


def comparable(keys: pa.LargeBinaryArray) -> pa.LargeStringArray:
    """Keys as failures show them."""
    try:
        return keys.cast(pa.large_string())
    except pa.ArrowInvalid:  # names that are not UTF-8
        return pa.array([printable(key.decode("utf-8", "surrogateescape")) for key in keys.to_pylist()], pa.large_string())


def is_in(values: pa.LargeStringArray, sets: list[pa.ChunkedArray]) -> np.ndarray:
    found = np.zeros(len(values), bool)
    for value_set in sets:
        found |= pc.is_in(values, value_set=value_set.combine_chunks()).to_numpy(zero_copy_only=False)
    return found


def refuse_other_settings(layout: Layout, made: dict[str, Any], asked: dict[str, Any]) -> None:
    different = [name for name in {**made, **asked} if made.get(name) != asked.get(name)]
    if different:
        told = "; ".join(f"{name} {made.get(name)!r} there, {asked.get(name)!r} asked" for name in different)
        raise UsageError(f"output {str(layout.root)!r} was made otherwise: {told}. Choose another --out, or --overwrite")


def refuse_other_input(layout: Layout, current: Manifest, given: Input) -> None:
    message = f"the images of {given.images!r} are not those of {str(layout.root)!r}"
    if given.listing.length is None:
        raise UsageError(f"{message}: --overwrite starts over")
    if not current.complete:
        message += ", which is not finished"
    else:
        following = replace(current, rounds=(*current.rounds, Round(following_part(current), "", "", None)))
        added = int((~known_positions(layout, following, given.listing)).sum())
        removed = count_removed(layout, current, given.listing)
        message += f": {added:,} were added and {removed:,} removed" if added or removed else ": their order or labels differ"
    raise UsageError(f"{message}. --update extracts those that were added, --overwrite starts over")


def following_part(manifest: Manifest) -> int:
    return 1 + max((record.part for record in manifest.parts), default=-1)


def refuse_damage(layout: Layout, manifest: Manifest) -> None:
    """Parts that the manifest names are there, as they were written."""
    for record in manifest.parts:
        path = layout.part(record.part)
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise OutputError(f"{path} is missing, or not as it was written: --overwrite starts over")
