"""A store in another format: every format in bounded memory, and whole or not at all."""

import json
import os
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from densefeat.base import atomic_file, atomic_folder, output_errors
from densefeat.errors import OutputError, UsageError
from densefeat.store.columns import choose_columns
from densefeat.store.reader import Store, open_store
from densefeat.store.writer import vector_names

_HEADER_BYTES = 100_000_000  # of a safetensors file; its readers refuse more
_TENSOR_DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32"}


@dataclass(frozen=True)
class Job:
    """``vectors``: the columns to convert. ``advance``: told of each run of vectors written."""

    store: Store
    vectors: list[str]
    advance: Callable[[int], None]

    @property
    def plain(self) -> list[str]:
        vectors = vector_names(self.store.schema)
        return [name for name in self.store.schema.names if name not in vectors]

    @property
    def provenance(self) -> str:
        return json.dumps(self.store.provenance, ensure_ascii=False, indent=1)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole column, maps in their own shape."""
        return (len(self.store), *self.store.shapes.get(name, ()))

    def dtype(self, name: str) -> np.dtype:
        kind = self.store.schema.field(name).type
        return np.dtype((kind.value_type if name in self.store.shapes else kind).to_pandas_dtype())

    def arrays(self, name: str) -> Iterator[np.ndarray]:
        for _, array in self.store.batches(name):
            yield array
            if name in self.vectors:
                self.advance(len(array))

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        """Plain columns, then vectors."""
        for batch in self.store.record_batches([*self.plain, *self.vectors]):
            yield batch
            self.advance(len(batch) * len(self.vectors))


def convert(
    store: Store | str | Path,
    to: str,
    out: str | Path,
    columns: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write a finished store to ``out`` in the format ``to``, rows in its order; returns ``out``.

    - ``npy``: a folder with ``NAME.npy`` for each vector column, which ``np.load(mmap_mode="r")`` maps, the other columns in
      ``rows.parquet``, and ``provenance.json``.
    - ``npz``: a file with an array for each column; paths and labels as fixed-width text (no label: empty); ``provenance``
      as JSON.
    - ``safetensors``: a file with a tensor for each column of numbers; paths, labels and provenance as JSON in its metadata.
    - ``datasets``: a folder for ``datasets.load_from_disk``, vectors as lists of fixed length; ``provenance.json``.
    - ``csv``: a file with ``path``, …, ``block1_0``, ``block1_1``, …, and ``NAME.provenance.json`` beside it.

    Maps are in their shapes in npy, npz and safetensors, flat in the others. No format holds more than about 200 MB of the
    store in memory, but safetensors all its paths and labels.

    Args:
        columns: Vector columns by name, or blocks by number (``"3"``: all pools of block 3); None: all.
        advance: Called with the number of vectors written since the last call; rows × columns in all.

    Raises:
        UsageError: No such format, column or store, or one that is unfinished.
        OutputError: ``out`` exists or cannot be written, or the store is damaged.
    """
    if to not in _FORMATS:
        raise UsageError(f"format {to!r}: choose one of {', '.join(_FORMATS)}")
    opened = store if isinstance(store, Store) else open_store(store)
    _refuse_unfinished(opened)
    job, out = Job(opened, choose_columns(opened, columns), advance), Path(out)
    if os.path.lexists(out):
        raise OutputError(f"output {str(out)!r} exists: remove it or give another name")
    _FORMATS[to](job, out)
    return out


def _refuse_unfinished(store: Store) -> None:
    if not store.complete:
        done, total = store.progress
        of = "" if total is None else f" of {total:,}"
        raise UsageError(f"store {str(store.path)!r} is unfinished, {done:,}{of} images done: finish its extraction first")


def _to_npy(job: Job, out: Path) -> None:
    with atomic_folder(out) as folder:
        for name in job.vectors:
            with open(folder / f"{_file_name(name)}.npy", "wb") as file:
                _write_array(file, job.shape(name), job.dtype(name), job.arrays(name))
        schema = pa.schema([job.store.schema.field(name) for name in job.plain])
        with pq.ParquetWriter(folder / "rows.parquet", schema, compression="zstd") as rows:
            for batch in job.store.record_batches(job.plain):
                rows.write_batch(batch)
        (folder / "provenance.json").write_text(job.provenance, "utf-8")


def _to_npz(job: Job, out: Path) -> None:
    with atomic_file(out) as beside, output_errors(out), zipfile.ZipFile(beside, "w") as archive:
        for name in [*job.plain, *job.vectors]:
            text = job.dtype(name).kind == "O"
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED if text else zipfile.ZIP_STORED
            with archive.open(member, "w", force_zip64=True) as file:
                if text:
                    _write_text(file, job.store, name)
                else:
                    _write_array(file, job.shape(name), job.dtype(name), job.arrays(name))
        with archive.open("provenance.npy", "w") as file:
            np.save(file, np.array(job.provenance))


def _write_array(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, arrays: Iterable[np.ndarray]) -> None:
    """A ``.npy`` file from pieces; written, not mapped, so that its pages do not count as this process's memory."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    for array in arrays:
        file.write(np.ascontiguousarray(array).data)


def _write_text(file: IO[bytes], store: Store, name: str) -> None:
    """A column of text as numpy's fixed-width Unicode, the only text that ``np.load`` reads without unpickling."""
    longest = max((pc.max(pc.utf8_length(batch.column(0))).as_py() or 0 for batch in store.record_batches([name])), default=0)
    dtype = np.dtype(f"<U{max(1, longest)}")
    pieces = (batch.column(0).fill_null("").to_numpy(zero_copy_only=False) for batch in store.record_batches([name]))
    slices = (piece[i : i + 1024].astype(dtype) for piece in pieces for i in range(0, len(piece), 1024))
    _write_array(file, (len(store),), dtype, slices)


def _to_safetensors(job: Job, out: Path) -> None:
    """A length, a JSON header, then the tensors one after the other: streamed, which the library's own writer cannot."""
    numbers = [name for name in [*job.vectors, *job.plain] if job.dtype(name).kind != "O"]
    header: dict[str, Any] = {"__metadata__": {"provenance": job.provenance}}
    for name in job.plain:
        if name not in numbers:
            header["__metadata__"][name] = json.dumps(job.store[name].tolist(), ensure_ascii=False)
    offset = 0
    for name in numbers:
        shape, dtype = job.shape(name), job.dtype(name)
        end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _TENSOR_DTYPES[dtype.name], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _HEADER_BYTES:
        raise UsageError(
            f"{job.store.path}: too many paths for a safetensors header of {_HEADER_BYTES:,} bytes: convert to npy"
        )
    with atomic_file(out) as beside, output_errors(out), open(beside, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in numbers:
            for array in job.arrays(name):
                file.write(np.ascontiguousarray(array).data)


def _to_datasets(job: Job, out: Path) -> None:
    import datasets

    features = datasets.Features.from_arrow_schema(
        pa.schema([job.store.schema.field(name) for name in [*job.plain, *job.vectors]])
    )
    empty = datasets.table.InMemoryTable(features.arrow_schema.empty_table())
    with atomic_folder(out) as folder:
        # the library describes the folder by an empty data set of the same features; its one file is then written in pieces,
        # where saving a whole one would need a copy of it first
        shown = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            datasets.Dataset(empty, fingerprint=uuid.uuid4().hex[:16]).save_to_disk(folder, num_shards=1)
        finally:
            if shown:
                datasets.enable_progress_bars()
        [data] = folder.glob("*.arrow")
        with pa.OSFile(str(data), "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as stream:
            for batch in job.record_batches():
                stream.write_batch(batch.cast(features.arrow_schema))
        (folder / "provenance.json").write_text(job.provenance, "utf-8")


def _to_csv(job: Job, out: Path) -> None:
    fields = [job.store.schema.field(name) for name in job.plain]
    for name in job.vectors:
        fields += [pa.field(f"{name}_{i}", pa.float32()) for i in range(job.store.schema.field(name).type.list_size)]
    schema = pa.schema(fields)
    provenance = out.with_name(out.name.removesuffix(".csv") + ".provenance.json")
    with atomic_file(out) as beside, atomic_file(provenance) as provenance_beside, output_errors(out):
        provenance_beside.write_text(job.provenance, "utf-8")
        with pa.csv.CSVWriter(beside, schema) as rows:
            for batch in job.record_batches():
                arrays = [batch.column(name) for name in job.plain]
                for name in job.vectors:
                    values = batch.column(name).flatten().to_numpy().reshape(len(batch), -1)
                    arrays += [pa.array(column) for column in np.ascontiguousarray(values.T, np.float32)]
                rows.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


_FORMATS: dict[str, Callable[[Job, Path], None]] = {
    "npy": _to_npy,
    "npz": _to_npz,
    "safetensors": _to_safetensors,
    "datasets": _to_datasets,
    "csv": _to_csv,
}


def _file_name(column: str) -> str:
    """OutputError where a column's name would lead out of the folder."""
    if column != os.path.basename(column) or column in ("", ".", "..") or "\\" in column or "\0" in column:
        raise OutputError(f"column {column!r} cannot be a file's name: convert to npz")
    return column
