"""Parquet files that hold images, as datasets writes them or in a plain binary column."""

import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import describe_error
from densefeat.errors import DecodeError, UsageError
from densefeat.images.folders import Folder
from densefeat.images.parquet_batches import ParquetBatches
from densefeat.images.rows import (
    ImageColumns,
    choose_image_columns,
    format_labels,
    is_image,
    is_label,
    make_row_items,
    make_row_keys,
    read_label_names,
)
from densefeat.images.stamps import Stamps, stamp_open_file
from densefeat.images.stream import (
    ImageItem,
    RandomAccess,
    SequentialSource,
    hash_columns,
    make_unreadable_item,
    printable_key,
)

_log = logging.getLogger(__name__)
_IMAGES, _LABELS = 1024, 2**16  # rows of images, and of labels alone, that are read at a time
_CACHE_BYTES = 2**29  # of encoded images that one reader keeps
_MAX_GROUP_BYTES = 2**33  # of encoded images in a row group that is read as a whole
_MAX_ROWS = 10**9  # of one file: its keys alone would fill tens of gigabytes
_FREE_ROWS = 2**18  # of a file of any size; more have at least a byte each
_MAX_REFUSED_ROWS = 10**7  # of one file without images
_Batch = tuple[pa.RecordBatch, list[str] | None]  # rows, and names of the label's classes


@dataclass(frozen=True, slots=True)
class TableFile:
    """A Parquet file. ``groups``: how many rows each row group has; ``label``: the column of labels, None where it has none.

    ``error``: why its rows cannot be read; ``is_row``: nor is their number known: the file is one item that cannot be read.
    """

    name: str
    groups: tuple[int, ...]
    label: str | None = None
    error: str | None = None
    is_row: bool = False
    stamp: str | None = None

    @property
    def length(self) -> int:
        return sum(self.groups)

    def key(self, row: int) -> str:
        return self.name if self.is_row else f"{self.name}#{row}"

    def keys(self) -> pa.LargeBinaryArray:
        if self.is_row:
            return pa.array([self.name.encode("utf-8", "surrogateescape")], pa.large_binary())
        return make_row_keys(self.name, self.length)


def _make_unreadable_file(name: str, reason: str) -> TableFile:
    return TableFile(name, (1,), error=reason, is_row=True)


class TableRows(SequentialSource, RandomAccess):
    """The rows of Parquet files, one file after the other, with keys ``file.parquet#17``."""

    def __init__(self, folder: Folder, files: list[TableFile], columns: ImageColumns, classes: list[str] | None = None) -> None:
        super().__init__()
        self.folder, self.files, self.columns, self.classes = folder, files, columns, classes

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
            yield from _make_unreadable_rows(file, start, file.length, DecodeError(file.error, "read"))
            return
        with ExitStack() as stack:
            try:
                table = stack.enter_context(self._open(file))
            except Exception as error:
                yield from _make_unreadable_rows(file, start, file.length, error)
                return
            first = 0
            for group, count in enumerate(file.groups):
                if start < first + count:
                    batches = self._batches(table, file, group)
                    yield from self._group_items(file, batches, first, max(start, first), first + count)
                first += count

    def _group_items(
        self, file: TableFile, batches: Iterator[_Batch], first: int, start: int, stop: int
    ) -> Iterator[ImageItem]:
        """Read rows ``start`` to ``stop`` of the file, within a row group that begins with row ``first``."""
        row = first
        read_path = self.folder.below(file.name).read
        columns = ImageColumns(self.columns.image, file.label)
        while row < stop:
            try:
                batch, names = next(batches)
                skip = min(max(start - row, 0), len(batch))
                rows = batch.slice(skip, stop - row - skip)
                items = make_row_items(rows, columns, names, file.name, row + skip, read_path)
            except Exception as error:
                yield from _make_unreadable_rows(file, max(row, start), stop, error)
                return
            yield from items
            row += len(batch)

    @contextmanager
    def _open(self, file: TableFile) -> Iterator[ParquetBatches]:
        with self.folder.open(file.name) as handle, ParquetBatches(handle) as table:
            yield table

    def _batches(self, table: ParquetBatches, file: TableFile, group: int) -> Iterator[_Batch]:
        columns = [self.columns.image] if file.label is None else [self.columns.image, file.label]
        names = read_label_names(table.schema, file.label)
        for batch in table.iter_batches([group], columns, _IMAGES):
            yield batch, names

    def keys(self) -> pa.LargeBinaryArray:
        return pa.concat_arrays([file.keys() for file in self.files])

    def fingerprint(self) -> str:
        return hash_columns(self.keys(), self.label_values() if self.labelled else None, self.columns.names())

    def stamps(self) -> Stamps:
        names = pa.array([printable_key(file.name) for file in self.files], pa.large_string())
        stamps = pa.array([file.stamp for file in self.files], pa.large_string())
        return Stamps(names, stamps, np.repeat(np.arange(len(self.files)), [file.length for file in self.files]))

    def key(self, position: int) -> str:
        for file in self.files:  # faster than making the keys of all rows
            if position < file.length:
                return file.key(position)
            position -= file.length
        raise IndexError(position)

    def label_values(self) -> pa.LargeStringArray:
        if self.columns.label is None:
            return pa.nulls(self.length, pa.large_string())
        return pa.concat_arrays([self._labels(file) for file in self.files])

    def class_names(self) -> list[str] | None:
        return self.classes

    def _labels(self, file: TableFile) -> pa.Array:
        unknown = pa.nulls(file.length, pa.large_string())
        if file.error is not None or file.label is None:
            return unknown
        try:
            with self._open(file) as table:
                names = read_label_names(table.schema, file.label)
                batches = table.iter_batches(table.groups, [file.label], _LABELS)
                labels = [format_labels(batch.column(0), names) for batch in batches]
                return pa.concat_arrays(labels) if sum(map(len, labels)) == file.length > 0 else unknown
        except Exception:  # reading an item of this file raises the error
            return unknown

    def group_sizes(self) -> np.ndarray:
        return np.array([count for file in self.files for count in file.groups], np.int64)

    def reader(self) -> "RowGroupReader":
        return RowGroupReader(self)


class RowGroupReader:
    """A reader of the rows of Parquet files in any order.

    A row group is read as a whole, and kept while it is among those used last, up to ``_CACHE_BYTES``.
    """

    def __init__(self, source: TableRows) -> None:
        self.source = source
        self.starts = np.cumsum([0, *source.group_sizes()]).tolist()
        self.groups: OrderedDict[int, list[bytes | DecodeError]] = OrderedDict()  # images, or why they cannot be read
        self.size = 0  # bytes in ``groups``

    def read(self, position: int) -> bytes:
        group = bisect_right(self.starts, position) - 1
        if group not in self.groups:
            self._load(group)
        self.groups.move_to_end(group)
        image = self.groups[group][position - self.starts[group]]
        if isinstance(image, DecodeError):
            raise image
        return image

    def _load(self, group: int) -> None:
        images: list[bytes | DecodeError] = []
        size = 0
        for item in self.source.items(self.starts[group], self.starts[group + 1]):
            images.append(_read_or_error(item) if size <= _MAX_GROUP_BYTES else _refuse_large_group())
            size += _count_bytes(images[-1:])
        self.groups[group] = images
        self.size += size
        while self.size > _CACHE_BYTES and len(self.groups) > 1:
            self.size -= _count_bytes(self.groups.popitem(last=False)[1])


def _read_or_error(item: ImageItem) -> bytes | DecodeError:
    try:
        return item.read()
    except DecodeError as error:
        return error


def _refuse_large_group() -> DecodeError:
    return DecodeError(f"a row group of more than {_MAX_GROUP_BYTES:,} bytes: write smaller ones, or read it in order", "read")


def _count_bytes(images: list[bytes | DecodeError]) -> int:
    return sum(len(image) for image in images if isinstance(image, bytes))


def open_tables(
    folder: Folder, names: list[str], images: str, image_column: str | None = None, label_column: str | None = None
) -> TableRows:
    """Open Parquet files as one source, in the order of their ``names`` in ``folder``.

    A file that cannot be read is one item that cannot be read; one without such images has as many as it has rows. Columns are
    chosen by :func:`densefeat.images.rows.choose_image_columns`; a file without the column of labels is logged, and its rows
    have none. ``images``: what the user named, for errors.
    Raises UsageError where no file can be read, there are no rows, or the columns are missing.
    """
    with ThreadPoolExecutor(8) as pool:
        footers = list(pool.map(partial(read_footer, folder), names))
    schemas = [schema for _, schema in footers if schema is not None]
    if not schemas:
        raise UsageError(f"images {images!r}: {footers[0][0].error}")
    columns = choose_image_columns(schemas, image_column, label_column, images)
    files = [file if schema is None else _choose_file_columns(file, schema, columns) for file, schema in footers]
    if not sum(file.length for file in files):
        raise UsageError(f"images {images!r}: no rows in it")
    without = [file.name for file in files if columns.label and file.error is None and file.label is None]
    if without:
        count = f"{len(without):,} of {len(files):,} files have no labels"
        _log.warning("images %r: %s, such as %r: no column %r of text or numbers", images, count, without[0], columns.label)
    classes = (read_label_names(schema, columns.label) for schema in schemas)
    return TableRows(folder, files, columns, next((names for names in classes if names is not None), None))


def read_footer(folder: Folder, name: str) -> tuple[TableFile, pa.Schema | None]:
    """Read a file's row groups and columns, or why they cannot be read."""
    try:
        with folder.open(name) as handle, pq.ParquetFile(handle) as table:
            stamp = stamp_open_file(handle)
            groups = tuple(table.metadata.row_group(group).num_rows for group in range(table.num_row_groups))
            most = min(_MAX_ROWS, max(_FREE_ROWS, handle.seek(0, os.SEEK_END)))
            if sum(groups) > most or min(groups, default=0) < 0:
                reason = f"a Parquet file of {sum(groups):,} rows: at most {most:,} are read of one of its size"
                return _make_unreadable_file(name, reason), None
            return TableFile(name, groups, stamp=stamp), table.schema_arrow
    except DecodeError as error:
        return _make_unreadable_file(name, str(error)), None
    except Exception as error:  # pyarrow and file systems raise many kinds
        return _make_unreadable_file(name, f"not a Parquet file, or damaged: {describe_error(error)}"), None


def _choose_file_columns(file: TableFile, schema: pa.Schema, columns: ImageColumns) -> TableFile:
    """Return the file with its columns, or with an error if it has no images where other files have them."""
    image, label = (-1 if column is None else schema.get_field_index(column) for column in (columns.image, columns.label))
    if image < 0:
        return _refuse_rows(file, f"no column {columns.image!r}: it has {', '.join(schema.names)}")
    dtype = schema.field(image).type
    if not is_image(dtype):
        return _refuse_rows(file, f"column {columns.image!r} holds {dtype}, unlike that of other files")
    return replace(file, label=columns.label if label >= 0 and is_label(schema.field(label).type) else None)


def _refuse_rows(file: TableFile, reason: str) -> TableFile:
    """Return the file with an error for each of its rows, or for itself if a crafted footer promises too many."""
    return replace(file, error=reason) if file.length <= _MAX_REFUSED_ROWS else _make_unreadable_file(file.name, reason)


def _make_unreadable_rows(file: TableFile, start: int, stop: int, error: Exception) -> Iterator[ImageItem]:
    if isinstance(error, StopIteration):
        reason = "fewer rows than the file's footer promises"
    else:
        reason = str(error) if isinstance(error, DecodeError) else f"damaged Parquet: {describe_error(error)}"
    return (make_unreadable_item(file.key(row), None, reason) for row in range(start, stop))
