"""The Parquet file: types, metadata, bounded memory."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat.errors import OutputError
from densefeat.store.writer import _ROW_GROUP_BYTES, EmbeddingWriter, make_embedding_schema

SHAPES = {"block1": (3,), "block2": (2, 4, 5)}


def rows(n: int, start: int = 0) -> tuple[dict[str, list], dict[str, np.ndarray]]:
    generator = np.random.default_rng(start)
    features = {name: generator.random((n, *shape), np.float32) for name, shape in SHAPES.items()}
    paths = [f"{i}.jpg" for i in range(start, start + n)]
    return {"path": paths, "width": [10 + i for i in range(n)], "height": [20] * n}, features


def test_round_trip(tmp_path: Path) -> None:
    schema = make_embedding_schema(SHAPES, {"model": "m", "pool": "avg"})
    first, second = rows(5), rows(2, 5)
    with EmbeddingWriter(tmp_path / "x.parquet", schema) as writer:
        writer.append(*first)
        writer.append(*second)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["path"].to_pylist() == [f"{i}.jpg" for i in range(7)]
    assert table["width"].to_pylist() == [10, 11, 12, 13, 14, 10, 11]
    assert table.schema.field("block2").type.list_size == 40
    assert pa.types.is_float32(table.schema.field("block2").type.value_type)
    maps = np.stack(table["block2"].to_numpy()).reshape(7, 2, 4, 5)
    assert np.array_equal(maps, np.concatenate([first[1]["block2"], second[1]["block2"]]))
    made_by = json.loads(table.schema.metadata[b"densefeat"])
    assert made_by == {"format_version": 3, "model": "m", "pool": "avg", "shapes": {"block1": [3], "block2": [2, 4, 5]}}


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    shapes = {"block1": (_ROW_GROUP_BYTES // 16,)}
    values = {"block1": np.ones((1, _ROW_GROUP_BYTES // 16), np.float32)}
    path = tmp_path / "x.parquet"
    with EmbeddingWriter(path, make_embedding_schema(shapes, {})) as writer:
        for i in range(9):
            writer.append({"path": [str(i)], "width": [1], "height": [1]}, values)
            assert len(writer._pending) < 5
    assert pq.ParquetFile(path).metadata.num_row_groups == 3


def test_columns_of_labels_and_tiles(tmp_path: Path) -> None:
    schema = make_embedding_schema({"block1": (3,)}, {}, "float16", labelled=True, tiled=True)
    assert schema.names == ["path", "label", "width", "height", "x", "y", "block1"]
    columns = {"path": ["a", "a"], "label": ["cat", None], "width": [9, 9], "height": [9, 9], "x": [0, 4], "y": [0, 0]}
    values = np.array([[0.5, 1, 2], [3, 4, 65504]], np.float32)
    with EmbeddingWriter(tmp_path / "x.parquet", schema) as writer:
        writer.append(columns, {"block1": values})
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.drop_columns("block1").to_pydict() == columns
    assert np.array_equal(np.stack(table["block1"].to_numpy()), values.astype(np.float16))


def test_a_full_disk_is_one_clear_error() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(OutputError, match="output '/dev/full' cannot be written: .*No space left"),
        EmbeddingWriter(full, make_embedding_schema(SHAPES, {})) as writer,
    ):
        writer.append(*rows(5))
