"""Parquet files of a store as pyarrow reads them, each part of them compared with its checksum first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import ColumnChunk, atomic_file, output_errors, read_chunks
from densefeat.errors import DecodeError, OutputError
from densefeat.store.checksums import Checksums, add_checksums, map_file, open_file, read_checksums

_ROWS_DECODED = 1024  # at a time
_ROWS_READ = 65536  # at a time: a footer may state any number, for which pyarrow would allocate memory at once


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn pyarrow's and the system's errors on a damaged or missing file into OutputError that names it."""
    try:
        yield
    except (OSError, DecodeError, pa.ArrowException) as error:
        raise OutputError(f"{path}: missing or damaged ({' '.join(str(error).split())})") from error


def check_footer(path: Path, checksum: str) -> None:
    """Raise OutputError where a file's footer is not as it was written, or not that of the file that has this checksum."""
    with parquet_errors(path):
        _read_known_checksums(map_file(path), path, checksum)


def _read_known_checksums(data: memoryview, path: Path, checksum: str) -> Checksums | None:
    checksums = read_checksums(data, path)
    if checksum and (checksums is None or checksums.file != checksum):
        raise OutputError(f"{path}: damaged, or another file than the store's manifest names")
    return checksums


class CheckedFile:
    """A Parquet file of a store. What is read of it is compared with its checksums, which those of earlier versions lack.

    ``checksum``: the one that the store has recorded for the file, empty where it has not. ``checked``: the row groups and
    columns that were compared earlier, to which this file adds.
    Raises OutputError, as all methods do, where the file is missing, damaged, or another one than was recorded.
    """

    def __init__(self, path: Path, checksum: str = "", checked: set[tuple[int, str]] | None = None) -> None:
        self.path = path
        self._checked = set() if checked is None else checked
        with parquet_errors(path):
            self._data, self._source = map_file(path), open_file(path)
            self._checksums = _read_known_checksums(self._data, path, checksum)
            self._parquet = pq.ParquetFile(self._source, pre_buffer=False)
            self.metadata = self._parquet.metadata
            self.schema = self._parquet.schema_arrow
            if self._checksums and len(self._checksums.chunks) != self.metadata.num_row_groups * self.metadata.num_columns:
                raise OutputError(f"{path}: damaged: it has checksums of other columns")
            groups = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
            if min(groups, default=0) < 0 or sum(groups) != self.metadata.num_rows:
                raise OutputError(f"{path}: damaged: it states {self.metadata.num_rows} rows, its row groups {sum(groups)}")

    def __enter__(self) -> "CheckedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._parquet.close()
        self._source.close()

    @property
    def checksum(self) -> str:
        """The file's own checksum; empty where it has none."""
        return self._checksums.file if self._checksums else ""

    @cached_property
    def _chunks(self) -> tuple[tuple[ColumnChunk, ...], ...]:
        return read_chunks(self._source, self.metadata.num_columns)

    def check_all(self) -> None:
        """Check every column; one without a checksum is decoded."""
        for group in range(self.metadata.num_row_groups):
            if self._checksums:
                self._check(group, self.schema.names)
            else:
                for _ in self.iter_batches(_ROWS_DECODED, self.schema.names, [group]):
                    pass

    def iter_batches(
        self, rows: int, names: Sequence[str], groups: Sequence[int] | None = None, use_threads: bool = True
    ) -> Iterator[pa.RecordBatch]:
        """Yield some columns, at most so many ``rows`` at a time. ``groups``: the row groups; None: all."""
        self._require(names)
        with parquet_errors(self.path):
            for group in range(self.metadata.num_row_groups) if groups is None else groups:
                self._check(group, names)
                found, stated = 0, self.metadata.row_group(group).num_rows
                for batch in self._parquet.iter_batches(rows, [group], list(names), use_threads=use_threads):
                    found += len(batch)
                    batch.validate(full=True)  # text may be no UTF-8, which pyarrow does not look at
                    yield batch
                if found != stated:
                    raise OutputError(f"{self.path}: damaged: row group {group} has {found:,} rows and states {stated:,}")

    def read(self, names: Sequence[str] | None = None, use_threads: bool = True) -> pa.Table:
        """Read some columns, or all, of all rows."""
        names = self.schema.names if names is None else names
        fields = [field for field in self.schema if field.name in names]
        batches = self.iter_batches(_ROWS_READ, names, use_threads=use_threads)
        return pa.Table.from_batches(batches, pa.schema(fields, self.schema.metadata))

    def _require(self, names: Sequence[str]) -> None:
        """Raise OutputError for a column that is not there, which pyarrow would leave out."""
        if missing := set(names) - set(self.schema.names):
            raise OutputError(f"{self.path}: damaged: it has no column {min(missing)!r}")

    def _check(self, group: int, names: Sequence[str]) -> None:
        """Raise OutputError where columns of a row group are not as they were written."""
        if self._checksums is None:
            return
        damaged = []
        for name in names:
            if (group, name) in self._checked:
                continue
            column = self.schema.get_field_index(name)
            if self._checksums.fit(self._data, self._chunks[group][column], group * len(self._chunks[group]) + column):
                self._checked.add((group, name))
            else:
                damaged.append(name)
        if damaged:
            raise OutputError(f"{self.path}: damaged: its columns {', '.join(damaged)} are not as they were written")


def write_checked_table(path: Path, table: pa.Table) -> str:
    """Write a small table to a Parquet file that appears whole; return its checksum. Raises OutputError."""
    with atomic_file(path) as beside, output_errors(path):
        with open(beside, "wb") as file:
            pq.write_table(table, file, compression="zstd")
        return add_checksums(beside)
