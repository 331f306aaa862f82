"""Rows of embeddings to one Parquet file."""

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.store.atomic import written

FORMAT_VERSION = 1
METADATA_KEY = b"densefeat"
ROW_GROUP_BYTES = 32 * 2**20


def embedding_schema(shapes: dict[str, tuple[int, ...]], provenance: dict[str, Any]) -> pa.Schema:
    """``path``, ``width``, ``height``, then a FixedSizeList<float32> a feature; ``provenance`` as JSON in the metadata."""
    fields = [
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
    for name, shape in shapes.items():
        fields.append(
            pa.field(name, pa.list_(pa.field("item", pa.float32(), nullable=False), int(np.prod(shape))), nullable=False)
        )
    described = {
        "format_version": FORMAT_VERSION,
        **provenance,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(described, ensure_ascii=False)})


class EmbeddingWriter:
    """Appends rows; holds at most a row group's worth of them in memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        vectors = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
        self._path = path
        self.schema = schema
        self.rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        with written(self._path):
            self._writer = pq.ParquetWriter(
                path,
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_statistics=[name for name in schema.names if name not in vectors],
            )

    def append(self, keys: list[str], sizes: list[tuple[int, int]], features: dict[str, np.ndarray]) -> None:
        """``features``: float32 ``(len(keys), …)`` under the schema's names."""
        if not keys:
            return
        columns: list[pa.Array] = [
            pa.array(keys, pa.string()),
            pa.array([width for width, _ in sizes], pa.int32()),
            pa.array([height for _, height in sizes], pa.int32()),
        ]
        for field in list(self.schema)[3:]:
            flat = pa.array(np.ascontiguousarray(features[field.name], np.float32).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
        batch = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        self.rows += len(batch)
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_batches(self._pending, self.schema)
            with written(self._path):
                self._writer.write_table(table, row_group_size=len(table))
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
            with written(self._path) if kind is None else suppress(OSError):  # the first error is the one to tell
                self._writer.close()
