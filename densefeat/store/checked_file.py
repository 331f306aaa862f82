"""Parquet files of a store as pyarrow reads them, each part of them compared with its checksum first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import atomic_file, output_errors
from densefeat.errors import OutputError
from densefeat.store.checksums import add_checksums, open_file, read_checksums

_ROWS_DECODED = 1024  # at a time


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn pyarrow's and the system's errors on a damaged or missing file into OutputError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{path}: missing or damaged ({' '.join(str(error).split())})") from error


class CheckedFile:
    """A Parquet file of a store. What is read of it is compared with its checksums; a file of old may have none.

    ``checksum``: the one that the store has recorded for the file, empty where it has not.
    Raises OutputError, as all methods do, where the file is missing, damaged, or another one than was recorded.
    """

    def __init__(self, path: Path, checksum: str = "") -> None:
        self.path = path
        with parquet_errors(path):
            self._source = open_file(path)
            self._checksums = read_checksums(self._source, path)
            if checksum and (self._checksums is None or self._checksums.file != checksum):
                raise OutputError(f"{path}: damaged, or another file than the store's manifest names")
            self._parquet = pq.ParquetFile(self._source, pre_buffer=False)
            self.metadata = self._parquet.metadata
            self.schema = self._parquet.schema_arrow
            if self._checksums and len(self._checksums.chunks) != self.metadata.num_row_groups * self.metadata.num_columns:
                raise OutputError(f"{path}: damaged: it has checksums of other columns")

    def __enter__(self) -> "CheckedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._parquet.close()
        self._source.close()

    @property
    def checksum(self) -> str:
        """The file's own checksum; empty where it has none."""
        return self._checksums.file if self._checksums else ""

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
        with parquet_errors(self.path):
            for group in range(self.metadata.num_row_groups) if groups is None else groups:
                self._check(group, names)
                yield from self._parquet.iter_batches(rows, [group], list(names), use_threads=use_threads)

    def read(self, names: Sequence[str] | None = None, use_threads: bool = True) -> pa.Table:
        """Read some columns, or all, of all rows."""
        names = self.schema.names if names is None else list(names)
        with parquet_errors(self.path):
            for group in range(self.metadata.num_row_groups):
                self._check(group, names)
            return self._parquet.read(names, use_threads=use_threads)

    def _check(self, group: int, names: Sequence[str]) -> None:
        """Raise OutputError where columns of a row group are not as they were written."""
        if self._checksums is None:
            return
        indices = [self.schema.get_field_index(name) for name in names]
        damaged = [names[n] for n, i in enumerate(indices) if not self._checksums.fit(self._source, self.metadata, group, i)]
        if damaged:
            raise OutputError(f"{self.path}: damaged: its columns {', '.join(damaged)} are not as they were written")


def write_checked_table(path: Path, table: pa.Table) -> str:
    """Write a small table to a Parquet file that appears whole; return its checksum. Raises OutputError."""
    with atomic_file(path) as beside, output_errors(path):
        with open(beside, "wb") as file:
            pq.write_table(table, file, compression="zstd")
        return add_checksums(beside)
