"""Reading a store: a column at a time, as numpy arrays."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from densefeat.base import parse_json, shorten_text
from densefeat.errors import OutputError, UsageError
from densefeat.store.checked_file import CheckedFile
from densefeat.store.checksums import open_file
from densefeat.store.damage import find_footer_damage
from densefeat.store.failures import failures_file, read_failure_lines, read_failures
from densefeat.store.layout import Layout
from densefeat.store.manifest import (
    Failure,
    Manifest,
    is_manifest,
    list_finished_parts,
    read_records,
    require_manifest,
)
from densefeat.store.writer import FORMAT_VERSION, METADATA_KEY, vector_names

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

_READERS = min(16, os.cpu_count() or 1)  # threads
_PIECE_BYTES = 2**20  # of a column, decoded at a time by each thread: a page's size, more gains nothing
_BATCH_BYTES = 32 * 2**20
_PATH = "path"


class Store:
    """The rows of embeddings in a folder or a single Parquet file; made by :func:`open_store`.

    ``len(store)`` rows, in the order of the input. ``store["block3"]``: float32 or float16 ``(rows, C)``. Columns are read when
    they are used, and compared with their checksums: a part that cannot be read, or is not as it was written, raises
    OutputError with its name.
    """

    def __init__(
        self, path: Path, parts: list[Path], manifest: Manifest | None, sizes: Sequence[int], checksums: Sequence[str]
    ) -> None:
        self.path, self.parts, self.manifest = path, parts, manifest
        self._sizes, self._checksums = list(sizes), list(checksums)
        self._checked: list[set[tuple[int, str]]] = [set() for _ in parts]  # chunks that were compared with their checksums
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)
        self.schema: pa.Schema = _read_schema(parts[0]) if parts else pa.schema([])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {len(self)} rows, {', '.join(f'{k} {v}' for k, v in self.shapes.items())})"

    @property
    def complete(self) -> bool:
        """Whether the job that writes the store has finished."""
        return self.manifest is None or self.manifest.complete

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What made the rows: model, weights and their SHA-256, preprocessing, tap, pool, versions."""
        return self._description if self.manifest is None else self.manifest.provenance

    @cached_property
    def _description(self) -> dict[str, Any]:
        return _read_description(self.schema, self.path)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row's feature, by column name; maps are stored flat.

        Raises OutputError where a shape that is recorded is not that of the column.
        """
        recorded = self._description.get("shapes", {})
        sizes = {name: self.schema.field(name).type.list_size for name in vector_names(self.schema)}
        shapes = {}
        for name, size in sizes.items():
            shape: Any = recorded.get(name, [size]) if isinstance(recorded, dict) else None
            if not _is_shape(shape) or math.prod(shape) != size:
                raise OutputError(f"{self.path}: damaged: {size} values a row in column {name!r} are not of the shape {shape}")
            shapes[name] = tuple(shape)
        return shapes

    @cached_property
    def keys(self) -> np.ndarray:
        """The ``path`` of every row: ``(rows,)`` of str. Kept after the first use."""
        return self[_PATH]

    @cached_property
    def labels(self) -> np.ndarray | None:
        """The ``label`` of every row: ``(rows,)`` of str or None; None where the store has none. Kept after the first use."""
        return self["label"] if "label" in self.schema.names else None

    @property
    def failures(self) -> list[Failure]:
        """The images and tiles that have no row."""
        if self.manifest is None:
            return read_failure_lines(failures_file(self.path))
        layout = Layout(self.path)
        closed = [failure for failure, _ in read_failures(layout, self.manifest)]
        records = [] if self.complete or self.manifest.waits else read_records(layout, self.manifest)
        return closed + [failure for record in records for failure in record.failures]

    @property
    def progress(self) -> tuple[int, int | None]:
        """Images (or tiles) that are done and all there are, of an unfinished store's last round; None: not known."""
        if self.manifest is None or self.complete:
            return len(self), len(self)
        records = read_records(Layout(self.path), self.manifest)
        return sum(record.reached - record.start for record in records), self.manifest.rounds[-1].positions

    def __getitem__(self, name: str) -> np.ndarray:
        """Read all rows of a column: vectors as ``(rows, C)``, plain columns as ``(rows,)``."""
        return self.read(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows ``start`` to ``stop`` of a column. Raises UsageError if there is no such column or row.

        Vectors go from the file into the result about a megabyte at a time for each reading thread.
        """
        self._check(name)
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise UsageError(f"rows {start} to {stop} of {self.path}: it has {len(self)} rows")
        field = self.schema.field(name).type
        touched = range(*np.searchsorted(self._starts, (start + 1, stop)) - (1, 0))
        if not pa.types.is_fixed_size_list(field):
            offset = int(self._starts[touched[0]]) if touched else 0
            return self._column(name, touched).slice(start - offset, stop - start).to_numpy()
        out = self._allocate(stop - start, field)
        lanes = -(-_READERS // max(1, len(touched)))  # few parts: several threads on each
        tasks = [(part, slice(lane, None, lanes)) for part in touched for lane in range(lanes)]
        with ThreadPoolExecutor(_READERS) as pool:
            for _ in pool.map(lambda task: self._fill(out, start, name, *task), tasks):
                pass  # the first error ends the loop and cancels the other tasks
        return out

    def _allocate(self, rows: int, field: pa.FixedSizeListType) -> np.ndarray:
        try:
            return np.empty((rows, field.list_size), field.value_type.to_pandas_dtype())
        except (MemoryError, ValueError):  # of numbers that a manifest or a footer states
            raise OutputError(f"{self.path}: no memory for {rows:,} rows of {field.list_size:,} numbers") from None

    def _fill(self, out: np.ndarray, start: int, name: str, index: int, lane: slice) -> None:
        """Copy some of a part's row groups into ``out``, whose first row is the store's row ``start``."""
        with self._open(index, name) as part:
            groups = range(part.metadata.num_row_groups)
            sizes = [part.metadata.row_group(group).num_rows for group in groups]
            firsts = self._starts[index] + np.concatenate([[0], np.cumsum(sizes)]) - start
            rows = max(1, _PIECE_BYTES // row_bytes(self.schema, [name]))
            for group in groups[lane]:
                first = int(firsts[group])
                if first >= len(out) or firsts[group + 1] <= 0:
                    continue
                for piece in part.iter_batches(rows, [name], [group], use_threads=False):
                    _refuse_nulls(piece, part.path)
                    values = piece.column(name).flatten().to_numpy(zero_copy_only=False).reshape(len(piece), -1)
                    low, high = max(0, first), min(first + len(piece), len(out))
                    if low < high:
                        out[low:high] = values[low - first : high - first]
                    first += len(piece)
                    if first >= len(out):
                        break

    @contextmanager
    def _open(self, index: int, *names: str) -> Iterator[CheckedFile]:
        """Open a part and check that it has the rows and the columns that it should have."""
        path = self.parts[index]
        with CheckedFile(path, self._checksums[index], self._checked[index]) as part:
            if part.metadata.num_rows != self._sizes[index]:
                raise OutputError(f"{path}: has {part.metadata.num_rows} rows, not the {self._sizes[index]} of the manifest")
            for name in names:
                if name not in part.schema.names or part.schema.field(name).type != self.schema.field(name).type:
                    raise OutputError(f"{path}: its column {name!r} is not that of the other parts")
            yield part

    def _column(self, name: str, parts: Sequence[int]) -> pa.ChunkedArray:
        def read(index: int) -> pa.ChunkedArray:
            with self._open(index, name) as part:
                table = part.read([name], use_threads=False)
            _refuse_nulls(table, self.parts[index])
            return table.column(name)

        with ThreadPoolExecutor(_READERS) as pool:
            chunks = [chunk for column in pool.map(read, parts) for chunk in column.chunks]
        return pa.chunked_array(chunks, self.schema.field(name).type)

    def column(self, name: str) -> pa.ChunkedArray:
        """Read a column as an arrow array."""
        self._check(name)
        return self._column(name, range(len(self.parts)))

    def batches(self, name: str, rows: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield a column in pieces, for stores larger than memory: the first row, and an array.

        ``rows``: at most so many in a piece; None: 32 MB.
        """
        self._check(name)
        if rows is None:
            rows = max(1, _BATCH_BYTES // row_bytes(self.schema, [name]))
        start = 0
        while start < len(self):
            boundary = int(self._starts[np.searchsorted(self._starts, start + rows, "right") - 1])
            stop = boundary if boundary > start else min(start + rows, len(self))  # whole parts, so that none is decoded twice
            yield start, self.read(name, start, stop)
            start = stop

    def record_batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns side by side, in pieces of about 4 MB, in order."""
        for name in names:
            self._check(name)
        rows = max(1, min(65536, 4 * _PIECE_BYTES // max(1, row_bytes(self.schema, names))))
        for index in range(len(self.parts)):
            with self._open(index, *names) as part:
                for batch in part.iter_batches(rows, names):
                    _refuse_nulls(batch, part.path)
                    yield batch.select(list(names))

    def dataset(self) -> "Dataset":
        """Return the rows as a pyarrow dataset, which does not compare what it reads with checksums."""
        from pyarrow.dataset import dataset  # imports pandas

        paths = [os.path.abspath(part) for part in self.parts]  # a relative one might look like an address
        return dataset(paths, schema=self.schema, format="parquet", filesystem=LocalFileSystem())

    def _check(self, name: str) -> None:
        if name not in self.schema.names:
            raise UsageError(f"{self.path} has no column {name!r}: it has {', '.join(self.schema.names) or 'no rows yet'}")


def is_store(path: str | Path) -> bool:
    """Check whether a path is a store of densefeat, a folder or a single file, finished or not, of whatever version."""
    path = Path(path)
    if path.is_dir():
        return is_manifest(Layout(path))
    try:
        return path.is_file() and METADATA_KEY in (pq.read_schema(open_file(path)).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def open_store(path: str | Path) -> Store:
    """Open what ``densefeat extract`` wrote: a folder, even if it is not finished yet, or a single Parquet file.

    Raises UsageError where there is none, OutputError where it is damaged or of a newer version of the format.
    """
    path = Path(path)
    return _open_store_file(path) if path.is_file() else _open_store_folder(Layout(path))


def _open_store_file(path: Path) -> Store:
    try:
        file = CheckedFile(path)
    except OutputError as error:
        if isinstance(error.__cause__, pa.ArrowInvalid):
            raise UsageError(f"store {str(path)!r}: not a Parquet file ({error.__cause__})") from error
        raise
    with file:
        if METADATA_KEY not in (file.schema.metadata or {}):
            raise UsageError(
                f"store {str(path)!r}: a Parquet file, but not of densefeat; a store's folder is opened as a whole"
            )
        version = _read_description(file.schema, path).get("format_version")
        if type(version) is not int or version < 1:
            raise OutputError(f"{path}: damaged: its format version is {version!r}")
        if version > FORMAT_VERSION:
            raise OutputError(f"{path}: format version {version}; this densefeat reads up to {FORMAT_VERSION}: update it")
        return Store(path, [path], None, [file.metadata.num_rows], [file.checksum])


def _open_store_folder(layout: Layout) -> Store:
    """Open a folder by its manifest; of each part only the size and the footer are looked at now."""
    manifest = require_manifest(layout)
    records = list_finished_parts(layout, manifest)
    damaged = [problem for record in records if (problem := find_footer_damage(layout, record))]
    if damaged:
        raise OutputError(
            f"store {str(layout.root)!r}: {len(damaged)} of {len(records)} parts are missing or damaged ({damaged[0]}):"
            " densefeat verify lists them; the densefeat extract that made the store extracts them again"
        )
    parts = [layout.part(record.part) for record in records]
    return Store(
        layout.root, parts, manifest, [record.rows for record in records], [record.file_checksum for record in records]
    )


def row_bytes(schema: pa.Schema, names: Sequence[str]) -> int:
    """Return the size in memory of one row's vectors in these columns; a plain column counts as 16 bytes."""
    fields = [schema.field(name).type for name in names]
    return sum(type.list_size * type.value_type.bit_width // 8 if pa.types.is_fixed_size_list(type) else 16 for type in fields)


def _read_description(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """Read what a Parquet file of a store says of itself. Raises OutputError where that is no JSON object."""
    try:
        description = parse_json((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except ValueError as error:
        raise OutputError(f"{path}: damaged: its metadata cannot be read ({shorten_text(str(error))})") from error
    if not isinstance(description, dict):
        raise OutputError(f"{path}: damaged: its metadata is no JSON object")
    return description


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)


def _read_schema(path: Path) -> pa.Schema:
    """Read the columns of a part. Raises OutputError where they are not such as a store has, each name once."""
    with CheckedFile(path) as file:
        schema = file.schema
    for field in schema:
        if not _CHECKS.get(field.name, _is_other_column)(field.type):
            raise OutputError(f"{path}: damaged: its column {field.name!r} is of type {field.type}")
    if _PATH not in schema.names or not vector_names(schema) or len(set(schema.names)) < len(schema):
        raise OutputError(f"{path}: damaged: its columns are {shorten_text(', '.join(schema.names))}")
    return schema


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_other_column(kind: pa.DataType) -> bool:
    """Check that a column holds vectors of floats, or none: programs of the user may add any."""
    return not pa.types.is_fixed_size_list(kind) or (kind.list_size > 0 and pa.types.is_floating(kind.value_type))


_CHECKS = {_PATH: _is_text, "label": _is_text} | dict.fromkeys(("width", "height", "x", "y", "page"), pa.types.is_integer)


def _refuse_nulls(columns: pa.Table | pa.RecordBatch, path: Path) -> None:
    """Raise OutputError where a row has no key, or no vector."""
    for field, column in zip(columns.schema, columns.columns, strict=True):
        if column.null_count and (field.name == _PATH or pa.types.is_fixed_size_list(field.type)):
            raise OutputError(f"{path}: damaged: its column {field.name!r} is empty in {column.null_count:,} rows")
