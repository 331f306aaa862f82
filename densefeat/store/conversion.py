"""Converting a store to other formats, in bounded memory; the result appears whole or not at all."""

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

from densefeat.base import FormulaCheck, atomic_file, atomic_folder, check_output_name, output_errors, recognize_none
from densefeat.errors import OutputError, UsageError
from densefeat.store.columns import choose_columns
from densefeat.store.reader import Store, open_store
from densefeat.store.writer import vector_names

_HEADER_BYTES = 100_000_000  # of a safetensors file; its readers refuse more
_TENSOR_DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32"}


@dataclass(frozen=True)
class _Conversion:
    """A store and the columns of vectors to convert. ``advance``: called with the number of vectors just written."""

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
        """Return the shape of the whole column, with maps unflattened."""
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
        """Yield plain columns, then vectors."""
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
    """Write a finished store to ``out`` in the format ``to``, with the rows in the same order; return ``out``.

    - ``npy``: a folder with ``NAME.npy`` for each vector column, which ``np.load(mmap_mode="r")`` maps, the other columns in
      ``rows.parquet``, and ``provenance.json``.
    - ``npz``: a file with an array for each column; paths and labels as fixed-width text (no label: empty); ``provenance``
      as JSON.
    - ``safetensors``: a file with a tensor for each column of numbers; paths, labels and provenance as JSON in its metadata.
    - ``datasets``: a folder for ``datasets.load_from_disk``, vectors as lists of fixed length; ``provenance.json``.
    - ``csv``: a file with ``path``, …, ``block1_0``, ``block1_1``, …, and ``NAME.provenance.json`` beside it.

    Maps have their shapes in npy, npz and safetensors and are flat in the others. At most about 200 MB of the store are in
    memory; for safetensors all paths and labels, too.

    Args:
        columns: Vector columns by name, or blocks by number (``"3"``: all pools of block 3); None: all.
        advance: Called with the number of vectors written since the last call; rows × columns in all.

    Raises:
        UsageError: There is no such format, column or store, or the store is unfinished.
        OutputError: ``out``, or the file beside a CSV, exists or cannot be written, or the store is damaged.
    """
    if to not in _FORMATS:
        raise UsageError(f"format {to!r}: choose one of {', '.join(_FORMATS)}")
    check_output_name(out)
    opened = store if isinstance(store, Store) else open_store(store)
    _refuse_unfinished(opened)
    conversion, out = _Conversion(opened, choose_columns(opened, columns), advance), Path(out)
    for place in [out, _provenance_file(out)] if to == "csv" else [out]:
        if os.path.lexists(place):
            raise OutputError(f"output {str(place)!r} exists: remove it or give another name")
    _FORMATS[to](conversion, out)
    return out


def _refuse_unfinished(store: Store) -> None:
    if not store.complete:
        done, total = store.progress
        of_all = "" if total is None else f" of {total:,}"
        raise UsageError(f"store {str(store.path)!r} is unfinished, {done:,}{of_all} images done: finish its extraction first")


def _write_npy(conversion: _Conversion, out: Path) -> None:
    with atomic_folder(out) as folder:
        for name in conversion.vectors:
            with open(folder / f"{_check_file_name(name)}.npy", "wb") as file:
                _write_array(file, conversion.shape(name), conversion.dtype(name), conversion.arrays(name))
        schema = pa.schema([conversion.store.schema.field(name) for name in conversion.plain])
        with open(folder / "rows.parquet", "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as rows:
            for batch in conversion.store.record_batches(conversion.plain):
                rows.write_batch(batch)
        (folder / "provenance.json").write_text(conversion.provenance, "utf-8")


def _write_npz(conversion: _Conversion, out: Path) -> None:
    with atomic_file(out, recognize_none) as beside, output_errors(out), zipfile.ZipFile(beside, "w") as archive:
        for name in [*conversion.plain, *conversion.vectors]:
            text = conversion.dtype(name).kind == "O"
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED if text else zipfile.ZIP_STORED
            with archive.open(member, "w", force_zip64=True) as file:
                if text:
                    _write_text(file, conversion.store, name)
                else:
                    _write_array(file, conversion.shape(name), conversion.dtype(name), conversion.arrays(name))
        with archive.open("provenance.npy", "w") as file:
            np.save(file, np.array(conversion.provenance))


def _write_array(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, arrays: Iterable[np.ndarray]) -> None:
    """Write a ``.npy`` file from pieces; written, not mapped, so that its pages do not count as this process's memory."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for array in arrays:
        file.write(np.ascontiguousarray(array).data)


def _write_text(file: IO[bytes], store: Store, name: str) -> None:
    """Write a column of text as numpy's fixed-width Unicode, the only text that ``np.load`` reads without unpickling."""
    longest = max((pc.max(pc.utf8_length(batch.column(0))).as_py() or 0 for batch in store.record_batches([name])), default=0)
    dtype = np.dtype(f"<U{max(1, longest)}")
    pieces = (batch.column(0).fill_null("").to_numpy(zero_copy_only=False) for batch in store.record_batches([name]))
    slices = (piece[i : i + 1024].astype(dtype) for piece in pieces for i in range(0, len(piece), 1024))
    _write_array(file, (len(store),), dtype, slices)


def _write_safetensors(conversion: _Conversion, out: Path) -> None:
    """Write a length, a JSON header, then one tensor after the other: streamed, which the library's own writer cannot do."""
    numbers = [name for name in [*conversion.vectors, *conversion.plain] if conversion.dtype(name).kind != "O"]
    header: dict[str, Any] = {"__metadata__": {"provenance": conversion.provenance}}
    for name in conversion.plain:
        if name not in numbers:
            header["__metadata__"][name] = json.dumps(conversion.store[name].tolist(), ensure_ascii=False)
    offset = 0
    for name in numbers:
        shape, dtype = conversion.shape(name), conversion.dtype(name)
        end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _TENSOR_DTYPES[dtype.name], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _HEADER_BYTES:
        raise UsageError(
            f"{conversion.store.path}: too many paths for a safetensors header of {_HEADER_BYTES:,} bytes: convert to npy"
        )
    with atomic_file(out, recognize_none) as beside, output_errors(out), open(beside, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in numbers:
            for array in conversion.arrays(name):
                file.write(np.ascontiguousarray(array).data)


def _write_datasets(conversion: _Conversion, out: Path) -> None:
    import datasets  # slow to import

    features = datasets.Features.from_arrow_schema(
        pa.schema([conversion.store.schema.field(name) for name in [*conversion.plain, *conversion.vectors]])
    )
    empty = datasets.table.InMemoryTable(features.arrow_schema.empty_table())
    with atomic_folder(out) as folder:
        # the library writes the folder for an empty data set with the same features; its one file is then filled in pieces,
        # while saving a whole data set would need a copy of it first
        had_progress_bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            datasets.Dataset(empty, fingerprint=uuid.uuid4().hex[:16]).save_to_disk(folder, num_shards=1)
        finally:
            if had_progress_bars:
                datasets.enable_progress_bars()
        [data] = folder.glob("*.arrow")
        with open(data, "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as stream:
            for batch in conversion.record_batches():
                stream.write_batch(batch.cast(features.arrow_schema))
        (folder / "provenance.json").write_text(conversion.provenance, "utf-8")


def _write_csv(conversion: _Conversion, out: Path) -> None:
    fields = [conversion.store.schema.field(name) for name in conversion.plain]
    for name in conversion.vectors:
        fields += [pa.field(f"{name}_{i}", pa.float32()) for i in range(conversion.store.schema.field(name).type.list_size)]
    schema = pa.schema(fields)
    provenance = _provenance_file(out)
    with (
        atomic_file(out, recognize_none) as beside,
        atomic_file(provenance, recognize_none) as provenance_beside,
        output_errors(out),
    ):
        provenance_beside.write_text(conversion.provenance, "utf-8")
        check = FormulaCheck(repr(str(out)))
        with open(beside, "wb") as file, pa.csv.CSVWriter(file, schema) as rows:
            for batch in conversion.record_batches():
                arrays = [batch.column(name) for name in conversion.plain]
                for array in arrays:
                    check.add(array.to_pylist() if pa.types.is_string(array.type) else [])
                for name in conversion.vectors:
                    values = batch.column(name).flatten().to_numpy().reshape(len(batch), -1)
                    arrays += [pa.array(column) for column in np.ascontiguousarray(values.T, np.float32)]
                rows.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        check.warn()


def _provenance_file(out: Path) -> Path:
    """Return where the provenance of a CSV is: ``NAME.provenance.json`` beside it."""
    return out.with_name(out.name.removesuffix(".csv") + ".provenance.json")


_FORMATS: dict[str, Callable[[_Conversion, Path], None]] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "safetensors": _write_safetensors,
    "datasets": _write_datasets,
    "csv": _write_csv,
}


def _check_file_name(column: str) -> str:
    """Return a column's name as that of a file. Raises OutputError where it would lead out of the folder."""
    if column != os.path.basename(column) or column in ("", ".", "..") or "\\" in column or "\0" in column:
        raise OutputError(f"column {column!r} cannot be a file's name: convert to npz")
    return column
