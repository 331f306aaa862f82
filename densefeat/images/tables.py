"""Parquet files with images in them, as datasets writes them or with a plain binary column."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.types import is_struct

from densefeat.errors import DecodeError, UsageError
from densefeat.images.columns import Columns, choose_columns, class_names, is_image, is_label, labels_of
from densefeat.images.files import Folder, failing, reason_of
from densefeat.images.rows import Rows, row_items, row_keys
from densefeat.images.stream import ImageItem, fingerprint_of

_BATCH_BYTES, _BATCH_ROWS = 2**25, 1024  # read at a time: whichever is reached first
_MAX_ROWS = 10**9  # of one file: its keys alone would fill tens of gigabytes
_BUFFER = 2**20  # with one, a row group is read page by page, not as a whole
_Batch = tuple[pa.RecordBatch, list[str] | None]  # rows, and names of the label's classes


@dataclass(frozen=True, slots=True)
class TableFile:
    """``groups``: rows of each row group; ``leaf``: Parquet's path of the encoded images.

    ``error``: why it cannot be read: it is then one position that fails.
    """

    name: str
    groups: tuple[int, ...] = ()
    leaf: str = ""
    error: str | None = None

    @property
    def length(self) -> int:
        return sum(self.groups) if self.error is None else 1


class Tables(Rows):
    """The rows of Parquet files, one after the other, with keys ``file.parquet#17``."""

    def __init__(self, folder: Folder, files: list[TableFile], columns: Columns) -> None:
        super().__init__()
        self.folder, self.files, self.columns = folder, files, columns

    @property
    def length(self) -> int:
        return sum(file.length for file in self.files)

    @property
    def labelled(self) -> bool:
        return self.columns.label is not None

    def rows(self, start: int) -> Iterator[ImageItem]:
        for file in self.files:
            if start < file.length:
                yield from self._file_items(file, max(start, 0))
            start -= file.length

    def _file_items(self, file: TableFile, start: int) -> Iterator[ImageItem]:
        if file.error is not None:
            yield failing(file.name, None, file.error)
            return
        with ExitStack() as stack:
            try:
                handle = stack.enter_context(self.folder.open(file.name))
                table = stack.enter_context(_open_table(handle))
            except Exception as error:
                yield from _failing_rows(file, start, file.length, error)
                return
            first = 0
            for group, count in enumerate(file.groups):
                if start < first + count:
                    batches = self._batches(handle, table, file.leaf, group)
                    yield from self._group_items(file, batches, first, max(start, first), first + count)
                first += count

    def _group_items(
        self, file: TableFile, batches: Iterator[_Batch], first: int, start: int, stop: int
    ) -> Iterator[ImageItem]:
        """Rows ``start`` to ``stop`` of the file, within a row group that begins with row ``first``."""
        done = first
        read_path = self.folder.below(file.name).read
        while done < stop:
            try:
                batch, names = next(batches)
            except Exception as error:
                yield from _failing_rows(file, max(done, start), stop, error)
                return
            skip = min(max(start - done, 0), len(batch))
            part = batch.slice(skip, stop - done - skip)
            yield from row_items(part, self.columns, names, file.name, done + skip, read_path)
            done += len(batch)

    def _batches(self, handle: BinaryIO, table: pq.ParquetFile, leaf: str, group: int) -> Iterator[_Batch]:
        image, label = self.columns.image, self.columns.label
        names = class_names(table.schema_arrow, label)
        rows = _batch_rows(handle, table.metadata, leaf, group)
        for batch in table.iter_batches(rows, row_groups=[group], columns=[image] if label is None else [image, label]):
            yield batch, names

    def keys(self) -> pa.LargeBinaryArray:
        parts = [row_keys(file.name, file.length) if file.error is None else _whole_file(file) for file in self.files]
        return pa.concat_arrays(parts)

    def fingerprint(self) -> str:
        return fingerprint_of(self.keys(), self.label_values() if self.labelled else None, self.columns.names())

    def label_values(self) -> pa.LargeStringArray:
        """The label of each position, null where it has none; UsageError where no column of labels was named."""
        if self.columns.label is None:
            raise UsageError("no column of labels was named")
        return pa.concat_arrays([self._labels(file, self.columns.label) for file in self.files])

    def class_names(self) -> list[str] | None:
        """Of the labels in their order, where the files' ClassLabel states them."""
        for file in self.files:
            if file.error is None and self.columns.label is not None:
                with self.folder.open(file.name) as handle, pq.ParquetFile(handle) as table:
                    return class_names(table.schema_arrow, self.columns.label)
        return None

    def _labels(self, file: TableFile, column: str) -> pa.Array:
        unknown = pa.nulls(file.length, pa.large_string())
        if file.error is not None:
            return unknown
        try:
            with self.folder.open(file.name) as handle, pq.ParquetFile(handle) as table:
                names = class_names(table.schema_arrow, column)
                values = table.read([column]).column(column)
                return pa.concat_arrays([labels_of(chunk, names) for chunk in values.chunks]) if len(values) else unknown
        except Exception:  # the items of this file say what is wrong with it
            return unknown


def open_tables(
    folder: Folder, names: list[str], images: str, image_column: str | None = None, label_column: str | None = None
) -> Tables:
    """``names``: of the files, in order, relative to ``folder``. A file that cannot be read is one position that fails.

    Columns are those of the first file that can be read; see :func:`densefeat.images.columns.choose_columns`.
    Raises UsageError where no file can be read, there are no rows, or the columns are not there.
    """
    with ThreadPoolExecutor(8) as pool:
        footers = list(pool.map(partial(read_footer, folder), names))
    schemas = [schema for _, schema in footers if schema is not None]
    if not schemas:
        raise UsageError(f"images {images!r}: {footers[0][0].error}")
    columns = choose_columns(schemas[0], image_column, label_column, images)
    files = [file if schema is None else _fitting(file, schema, columns) for file, schema in footers]
    if not sum(file.length for file in files):
        raise UsageError(f"images {images!r}: no rows in it")
    return Tables(folder, files, columns)


def read_footer(folder: Folder, name: str) -> tuple[TableFile, pa.Schema | None]:
    """A file's row groups and columns, or why they cannot be read."""
    try:
        with folder.open(name) as handle, pq.ParquetFile(handle) as table:
            groups = tuple(table.metadata.row_group(group).num_rows for group in range(table.num_row_groups))
            if sum(groups) > _MAX_ROWS or min(groups, default=0) < 0:
                return TableFile(name, error=f"a Parquet file of {sum(groups):,} rows: at most {_MAX_ROWS:,} are read"), None
            return TableFile(name, groups), table.schema_arrow
    except DecodeError as error:
        return TableFile(name, error=str(error)), None
    except Exception as error:  # of pyarrow or of the file system
        return TableFile(name, error=f"not a Parquet file, or damaged: {reason_of(error)}"), None


def _fitting(file: TableFile, schema: pa.Schema, columns: Columns) -> TableFile:
    """The file, or why it cannot stand beside the first one."""
    for column, fits in ((columns.image, is_image), (columns.label, is_label)):
        if column is None:
            continue
        if schema.get_field_index(column) < 0:
            return TableFile(file.name, error=f"no column {column!r}: it has {', '.join(schema.names)}")
        if not fits(schema.field(column).type):
            return TableFile(
                file.name, error=f"column {column!r} holds {schema.field(column).type}, unlike that of other files"
            )
    struct = is_struct(schema.field(columns.image).type)
    return replace(file, leaf=f"{columns.image}.bytes" if struct else columns.image)


def _open_table(handle: BinaryIO, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(handle, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True, **options)


def _batch_rows(handle: BinaryIO, metadata: pq.FileMetaData, leaf: str, group: int) -> int:
    """Rows of a row group read at a time: by the mean size of an image, and the longest one that is stored but once.

    Without the second a crafted file, in which many rows name one large image, would fill the memory.
    """
    row_group = metadata.row_group(group)
    size = 1
    for chunk in (row_group.column(i) for i in range(row_group.num_columns)):
        if chunk.path_in_schema == leaf:
            size = chunk.total_uncompressed_size // max(row_group.num_rows, 1)
            if chunk.has_dictionary_page:
                size = max(size, _longest_in_dictionary(handle, metadata, leaf, group))
    return min(max(_BATCH_BYTES // max(size, 1), 1), _BATCH_ROWS)


def _longest_in_dictionary(handle: BinaryIO, metadata: pq.FileMetaData, leaf: str, group: int) -> int:
    """Bytes of the longest value in the dictionary of a column chunk: one row is read, not decoded."""
    with _open_table(handle, metadata=metadata, read_dictionary=[leaf]) as table:
        batch = next(table.iter_batches(1, row_groups=[group], columns=[leaf]))
    column = batch.column(0)
    values = column.field("bytes") if is_struct(column.type) else column
    return pc.max(pc.binary_length(values.dictionary)).as_py() or 0


def _failing_rows(file: TableFile, start: int, stop: int, error: Exception) -> Iterator[ImageItem]:
    if isinstance(error, StopIteration):
        reason = "fewer rows than the file's footer promises"
    else:
        reason = str(error) if isinstance(error, DecodeError) else f"damaged Parquet: {reason_of(error)}"
    return (failing(f"{file.name}#{row}", None, reason) for row in range(start, stop))


def _whole_file(file: TableFile) -> pa.LargeBinaryArray:
    return pa.array([file.name.encode("utf-8", "surrogateescape")], pa.large_binary())
