"""``stamps.parquet``: in which state the files of the input were when a store's rows were made of them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.errors import OutputError
from densefeat.images import Stamps, join_chunks
from densefeat.store.checked_file import CheckedFile, write_checked_table
from densefeat.store.layout import Layout
from densefeat.store.manifest import Manifest

_JOB_KEY = b"densefeat_job"
_SCHEMA = pa.schema(
    [
        pa.field("file", pa.large_string(), nullable=False),
        pa.field("stamp", pa.large_string()),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("again", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class RecordedStamps:
    """The stamps of a store. ``table``: ``file``, ``stamp``, ``round`` (from 1), in the order of the rounds.

    Its column ``again`` says whether the file had changed when that round began, so that the round extracts all of its images.
    A file of a later round has an entry more; the last one is that of its rows.
    """

    table: pa.Table

    def until(self, rounds: set[int]) -> "RecordedStamps":
        """Return the entries of these rounds."""
        return RecordedStamps(self.table.filter(pc.is_in(self.table["round"], pa.array(sorted(rounds), pa.int32()))))

    def latest(self) -> pa.Table:
        """Return the last entry of each file."""
        files = join_chunks(self.table["file"])[::-1]
        _, first = np.unique(files.dictionary_encode().indices.to_numpy(), return_index=True)
        return self.table.take(len(files) - 1 - first)

    def look_up(self, files: pa.Array) -> pa.Table:
        """Return the last entry of each of ``files``, in their order; null where there is none."""
        table = self.latest()
        return table.take(pc.index_in(files, value_set=join_chunks(table["file"])))

    def find_changed(self, now: Stamps) -> np.ndarray:
        """Mark the files that are in another state now: bool ``(F,)``. A state that is not known is no change."""
        return _to_mask(pc.not_equal(self.look_up(now.files)["stamp"], pa.chunked_array([now.stamps])))

    def find_missing(self, now: Stamps) -> np.ndarray:
        """Mark the files whose state is known now, and is not recorded: bool ``(F,)``."""
        return _to_mask(pc.and_(pc.is_null(self.look_up(now.files)["stamp"]), pc.is_valid(pa.chunked_array([now.stamps]))))

    def find_again(self, files: pa.Array, round_number: int) -> np.ndarray:
        """Mark the files that had changed when a round began: bool ``(F,)``."""
        mask = pc.and_(self.table["again"], pc.equal(self.table["round"], round_number))
        return pc.is_in(files, value_set=join_chunks(self.table["file"].filter(mask))).to_numpy(zero_copy_only=False)

    def add(self, now: Stamps, files: np.ndarray, round_number: int, again: np.ndarray | None = None) -> "RecordedStamps":
        """Return these and the entries of a round for the marked ``files``; its own for these files are replaced.

        ``again``: mask of files; None: as the entries of this round say that are there.
        """
        again = self.find_again(now.files, round_number) if again is None else again
        added = pa.table(
            [
                now.files.filter(pa.array(files)),
                now.stamps.filter(pa.array(files)),
                np.full(int(files.sum()), round_number, np.int32),
                again[files],
            ],
            schema=_SCHEMA,
        )
        same = pc.and_(pc.equal(self.table["round"], round_number), pc.is_in(self.table["file"], join_chunks(added["file"])))
        return RecordedStamps(pa.concat_tables([self.table.filter(pc.invert(same)), added]))


def _to_mask(values: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(values, False).to_numpy()


def read_stamps(layout: Layout, manifest: Manifest) -> RecordedStamps:
    """Read a store's stamps: none where the store was made before there were any, or they are another job's.

    Raises OutputError where the file is damaged.
    """
    if not layout.stamps.exists():
        return RecordedStamps(_SCHEMA.empty_table())
    try:
        with CheckedFile(layout.stamps) as file:
            table = file.read()
        recorded = RecordedStamps(table.select(_SCHEMA.names).cast(_SCHEMA))
    except (pa.ArrowException, KeyError, OutputError) as error:
        reason = " ".join(str(error).split())
        raise OutputError(
            f"{layout.stamps}: damaged ({reason}); without it changes of images so far go unnoticed: remove it if there have"
            " been none, or --overwrite"
        ) from error
    if (table.schema.metadata or {}).get(_JOB_KEY) != manifest.job.encode():
        return RecordedStamps(_SCHEMA.empty_table())
    return recorded.until({number for number, made in enumerate(manifest.rounds, 1) if not made.dropped})


def write_stamps(layout: Layout, manifest: Manifest, recorded: RecordedStamps) -> None:
    """Write a store's stamps, those of earlier rounds once for each file."""
    rounds = {number for number, made in enumerate(manifest.rounds[:-1], 1) if not made.dropped}
    earlier = recorded.until(rounds).latest()
    rest = recorded.table.filter(pc.invert(pc.is_in(recorded.table["round"], pa.array(sorted(rounds), pa.int32()))))
    table = pa.concat_tables([earlier, rest]).replace_schema_metadata({_JOB_KEY: manifest.job.encode()})
    write_checked_table(layout.stamps, table)
