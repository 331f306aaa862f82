"""Closing a round that extracted images again: its rows take the places of those images' old rows, all at once.

Every part that changes is first written whole to ``work/closing/``, then the manifest that names all parts. Once that is there,
the round counts as closed: what is left is to move these files to their places, which the next job does if this one ends.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.base import is_plain_file, output_errors, refuse_stranger, sync, sync_folder
from densefeat.store.checked_file import CheckedFile
from densefeat.store.layout import Layout
from densefeat.store.manifest import Manifest, PartRecord, describe_file, is_manifest, read_manifest
from densefeat.store.outputs import empty_closing, remove_work
from densefeat.store.parts import read_paths
from densefeat.store.writer import EmbeddingWriter

_BATCH_ROWS = 1024


def stage_replacement(
    layout: Layout, old: Sequence[PartRecord], new: Sequence[PartRecord], again: pa.LargeStringArray
) -> list[PartRecord]:
    """Write the parts in which rows of ``again`` are replaced to ``work/closing/``; return the records of all parts.

    ``old``: parts in ``data/``; ``new``: of the round, in ``work/``; ``again``: the paths that the round extracted. Rows of an
    image take the place of its first old row; those of other images stay in their new parts.
    """
    empty_closing(layout)
    with output_errors(layout.root):
        layout.closing.mkdir(parents=True, exist_ok=True)
    merge = _Merge(layout, old, new, again)
    records = [merge.rewrite_old(index) if merge.touches(index) else record for index, record in enumerate(old)]
    return records + keep_filled([merge.move_new(index) for index in range(len(new))])


def keep_filled(records: Sequence[PartRecord]) -> list[PartRecord]:
    """Return the records of parts that have rows, or say that tiles were skipped: an update adds no others."""
    return [record for record in records if record.rows or record.skipped]


class _Merge:
    """The rows of old and new parts, by number over all parts, and where each goes."""

    def __init__(
        self, layout: Layout, old: Sequence[PartRecord], new: Sequence[PartRecord], again: pa.LargeStringArray
    ) -> None:
        self.layout, self.old, self.new = layout, old, new
        self.old_starts = np.cumsum([0, *(record.rows for record in old)])
        self.new_starts = np.cumsum([0, *(record.rows for record in new)])
        self.replaced = again.unique()
        old_images = self._find_images([layout.part(record.part) for record in old])
        new_images = self._find_images([layout.unfinished(record.part) for record in new])
        self.kept = old_images < 0  # by old row
        first_row = np.full(len(self.replaced), -1)  # by image
        rows = np.flatnonzero(~self.kept)[::-1]
        first_row[old_images[rows]] = rows
        places = np.where(new_images < 0, -1, first_row[new_images])  # by new row: the old row whose place it takes
        self.moved = np.flatnonzero(places >= 0)
        self.moved = self.moved[np.argsort(places[self.moved], kind="stable")]
        self.places = places[self.moved]
        self.stays = places < 0
        self.last_new: tuple[int, pa.Table] = (-1, pa.table({}))

    def _find_images(self, files: list[Path]) -> np.ndarray:
        """Return for each row of the files the number of its image among those replaced, -1 for others."""
        images = pc.fill_null(pc.index_in(read_paths(files), value_set=self.replaced), -1)
        return images.to_numpy().astype(np.int64)

    def touches(self, index: int) -> bool:
        """Check whether an old part has rows that are replaced."""
        return not self.kept[self.old_starts[index] : self.old_starts[index + 1]].all()

    def rewrite_old(self, index: int) -> PartRecord:
        record, (start, stop) = self.old[index], self.old_starts[index : index + 2]
        low, high = np.searchsorted(self.places, (start, stop))
        kept = np.flatnonzero(self.kept[start:stop])
        old = _read_rows(self.layout.part(record.part), kept)
        pieces = [old, *self._read_new(self.moved[low:high])]
        joined = pa.concat_tables([piece.replace_schema_metadata(old.schema.metadata) for piece in pieces])
        order = np.argsort(np.concatenate([kept + start, self.places[low:high]]), kind="stable")
        return self._write(record, joined.take(order))

    def _read_new(self, rows: np.ndarray) -> Iterator[pa.Table]:
        """Yield new rows in the order of their numbers, a table for each run of them that are in one part."""
        parts = np.searchsorted(self.new_starts, rows, "right") - 1
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(parts)) + 1):
            if len(run):
                index = int(parts[run[0]])
                if index != self.last_new[0]:  # the rows of the next old part are often in the same one
                    self.last_new = index, _read_table(self.layout.unfinished(self.new[index].part))
                yield self.last_new[1].take(rows[run] - self.new_starts[index])

    def move_new(self, index: int) -> PartRecord:
        """Put the rows of a new part that stay in it to ``work/closing/``."""
        record = self.new[index]
        stays = self.stays[self.new_starts[index] : self.new_starts[index + 1]]
        file = self.layout.unfinished(record.part)
        if not stays.any() and not record.skipped:
            return replace(record, rows=0)
        if not stays.all():
            return self._write(record, _read_table(file).filter(pa.array(stays)))
        with output_errors(self.layout.part(record.part)):
            _link(file, self.layout.closing_part(record.part))
        return record

    def _write(self, record: PartRecord, table: pa.Table) -> PartRecord:
        file = self.layout.closing_part(record.part)
        with EmbeddingWriter(file, table.schema, error_path=self.layout.part(record.part)) as writer:
            for batch in table.to_batches(_BATCH_ROWS):
                writer.append_batch(batch)
        with output_errors(file):
            sync(file)
        return describe_file(replace(record, rows=len(table)), file)


def _read_table(file: Path) -> pa.Table:
    with CheckedFile(file) as part:
        return part.read()


def _read_rows(file: Path, rows: np.ndarray) -> pa.Table:
    """Read some rows of a part; where there are none to read, its vectors may be damaged."""
    if len(rows):
        return _read_table(file).take(rows)
    with CheckedFile(file) as part:
        return part.schema.empty_table()


def _link(file: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
        sync(target)


def commit_replacement(layout: Layout, manifest: Manifest) -> None:
    """Make ``manifest`` that of the staged parts: from now on the round is closed."""
    manifest.save(layout, layout.closing_manifest)
    finish_replacement(layout)


def finish_replacement(layout: Layout) -> None:
    """Move what a closed round has staged to its places; nothing where no round was closed meanwhile."""
    closed = _read_staged_manifest(layout)
    if closed is None:
        return
    with output_errors(layout.root):
        for record in closed.parts:
            file, target = layout.closing_part(record.part), layout.part(record.part)
            if is_plain_file(file):
                refuse_stranger(target)
                os.replace(file, target)
        sync_folder(layout.data)
        os.replace(layout.closing_manifest, layout.manifest)
        sync_folder(layout.root)
    remove_work(layout)


def _read_staged_manifest(layout: Layout) -> Manifest | None:
    """Read the manifest that closes the store's last round; None where there is none, or it is another job's."""
    staged = Layout(layout.closing)
    if not is_plain_file(staged.manifest) or not is_manifest(staged):
        return None
    closed, current = read_manifest(staged), read_manifest(layout)
    return closed if closed and current and closed.round_id == current.round_id else None
