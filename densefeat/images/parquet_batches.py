"""Row groups of Parquet files that strangers made, read some rows at a time, so that no page or dictionary fills the memory."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from io import BufferedReader
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.types import is_dictionary, is_struct

from densefeat.base import ColumnChunk, read_chunks, read_pages

_BATCH_BYTES = 2**25  # read at a time
_BYTES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")  # physical types: rows of numbers cannot be large
_BUFFER = 2**20  # bytes; with a buffer pyarrow reads a row group page by page, not as a whole


class ParquetBatches:
    """An open Parquet file, which is closed by who opened it. ``groups``: the numbers of its row groups.

    Raises DecodeError or one of pyarrow's errors, as its methods do, where the file is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_local = isinstance(file, BufferedReader)
        self._table = self._open()
        self.schema, self.groups = self._table.schema_arrow, range(self._table.num_row_groups)
        self._leaves = list(self._table.metadata.schema)

    def __enter__(self) -> "ParquetBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()

    def iter_batches(self, groups: Sequence[int], columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield columns of row groups, at most so many ``rows`` at a time, and fewer where these could be large."""
        for place, leaf in enumerate(self._leaves):
            if leaf.physical_type in _BYTES and any(f"{leaf.path}.".startswith(f"{column}.") for column in columns):
                rows = min((self._choose_rows(group, place, rows) for group in groups), default=rows)
        yield from self._table.iter_batches(rows, row_groups=list(groups), columns=list(columns))

    @cached_property
    def _chunks(self) -> tuple[tuple[ColumnChunk, ...], ...]:
        return read_chunks(self._file, len(self._leaves))

    def _open(self, **options: Any) -> pq.ParquetFile:
        return pq.ParquetFile(self._file, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True, **options)

    def _choose_rows(self, group: int, place: int, rows: int) -> int:
        """Count the rows to read at a time, by the mean size of a page's values and the longest value in a dictionary.

        Otherwise a crafted file, in which many rows refer to one large image or pages unpack to very many bytes, would fill
        the memory. Of a file at an address the first page speaks for all, since it would be transferred twice.
        """
        for page in read_pages(self._file, self._chunks[group][place]):
            size = page.unpacked if page.is_dictionary else page.unpacked // max(page.values, 1)
            if page.is_dictionary and size * rows > _BATCH_BYTES:
                size = self._find_longest(group, self._leaves[place].path) or size
            rows = min(rows, _BATCH_BYTES // max(size, 1))
            if not self._is_local:
                break
        return max(rows, 1)

    def _find_longest(self, group: int, leaf: str) -> int:
        """Return the size of the longest value in a dictionary, 0 where it cannot be seen: one row is read but not decoded."""
        with self._open(metadata=self._table.metadata, read_dictionary=[leaf]) as table:
            values = next(table.iter_batches(1, row_groups=[group], columns=[leaf])).column(0)
        while is_struct(values.type):
            values = values.field(0)
        return pc.max(pc.binary_length(values.dictionary)).as_py() or 0 if is_dictionary(values.type) else 0
