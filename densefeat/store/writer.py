"""Writing rows of embeddings to one Parquet file."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import output_errors
from densefeat.store.checksums import add_checksums

FORMAT_VERSION = 3
METADATA_KEY = b"densefeat"
_ROW_GROUP_BYTES = 32 * 2**20
DTYPES = {"float32": pa.float32(), "float16": pa.float16()}


def make_embedding_schema(
    shapes: Mapping[str, Sequence[int]],
    provenance: dict[str, Any],
    dtype: str = "float32",
    labelled: bool = False,
    tiled: bool = False,
    paged: bool = False,
    texts: Sequence[str] = (),
) -> pa.Schema:
    """Return the schema: ``path``, ``label`` if any, ``page``, ``texts``, ``width``, ``height``, ``x`` and ``y``, vectors.

    The vectors are a FixedSizeList for each feature. The schema's metadata has ``provenance`` and the features' shapes as JSON
    under ``densefeat``.
    """
    fields = [pa.field("path", pa.string(), nullable=False)]
    fields += [pa.field("label", pa.string())] if labelled else []
    fields += [pa.field("page", pa.int32(), nullable=False)] if paged else []
    fields += [pa.field(name, pa.string()) for name in texts]
    names = ("width", "height", "x", "y") if tiled else ("width", "height")
    fields += [pa.field(name, pa.int32(), nullable=False) for name in names]
    for name, shape in shapes.items():
        item = pa.field("item", DTYPES[dtype], nullable=False)
        fields.append(pa.field(name, pa.list_(item, int(np.prod(shape))), nullable=False))
    description = {
        "format_version": FORMAT_VERSION,
        **provenance,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(description, ensure_ascii=False)})


def _is_split(field: pa.Field) -> bool:
    """Check whether to split a column's values into bytes, which makes float32 smaller and faster.

    DuckDB refuses it for float16.
    """
    return pa.types.is_float32(field.type.value_type)


def vector_names(schema: pa.Schema) -> list[str]:
    """Return the names of a schema's feature columns."""
    return [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]


class EmbeddingWriter:
    """A Parquet file that rows are appended to; at most a row group of them is in memory.

    ``error_path``: the path that errors name.
    """

    def __init__(self, path: Path, schema: pa.Schema, error_path: Path | None = None) -> None:
        self._path, self._error_path = path, error_path or path
        self.schema = schema
        self.rows = 0
        self._vectors = vector_names(schema)
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        with output_errors(self._error_path):
            self._file = open(path, "wb")  # noqa: SIM115  (closed with the writer) pyarrow may take a name for an address
            self._writer = pq.ParquetWriter(
                self._file,
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                use_byte_stream_split=[f"{name}.list.element" for name in self._vectors if _is_split(schema.field(name))],
                write_statistics=[name for name in schema.names if name not in self._vectors],
            )

    def append(self, columns: Mapping[str, Sequence[Any]], features: Mapping[str, np.ndarray]) -> None:
        """Append rows. ``columns``: the schema's plain ones; ``features``: its vectors, ``(rows, …)`` each."""
        arrays = []
        for field in self.schema:
            if field.name in self._vectors:
                values = np.ascontiguousarray(features[field.name]).reshape(-1)
                flat = pa.array(values.astype(field.type.value_type.to_pandas_dtype(), copy=False))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
            else:
                arrays.append(pa.array(columns[field.name], field.type))
        self.append_batch(pa.RecordBatch.from_arrays(arrays, schema=self.schema))

    def append_batch(self, batch: pa.RecordBatch) -> None:
        """Append rows of the same schema, for example from another file."""
        self.rows += len(batch)
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_batches(self._pending, self.schema)
            with output_errors(self._error_path):
                self._writer.write_table(table, row_group_size=max(1, len(table)))
        self._pending, self._pending_bytes = [], 0

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
        except BaseException as failure:
            kind = type(failure)
            raise
        finally:
            with output_errors(self._error_path) if kind is None else suppress(OSError):  # the first error is the one to report
                try:
                    self._writer.close()
                finally:
                    self._file.close()
        if kind is None:
            with output_errors(self._error_path):
                add_checksums(self._path)
