"""Small stores of made-up rows, written as an extraction writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from densefeat.store.folder import close_store, save_part, start_job
from densefeat.store.layout import Layout
from densefeat.store.manifest import Failure, Manifest, PartRecord, Round
from densefeat.store.outputs import check_store_folder
from densefeat.store.reader import Store, open_store
from densefeat.store.writer import EmbeddingWriter, make_embedding_schema

SHAPES: dict[str, tuple[int, ...]] = {"block1": (3,), "block2": (5,)}
PROVENANCE = {"model": "made-up", "pool": ["avg"], "weights": {"sha256": "0" * 64}}


def random_features(rows: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: str = "float32") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=(rows, *shape)).astype(dtype) for name, shape in shapes.items()}


def write_rows(path: Path, features: Mapping[str, np.ndarray], start: int, stop: int, labelled: bool = True) -> None:
    """Rows ``start`` to ``stop`` of ``features`` as one Parquet file; every fifth row has no label."""
    shapes = {name: values.shape[1:] for name, values in features.items()}
    dtype = next(iter(features.values())).dtype.name
    schema = make_embedding_schema(shapes, PROVENANCE, dtype, labelled)
    plain = {
        "path": [f'é/{i:02}, "{i}".jpg' for i in range(start, stop)],
        "label": [None if i % 5 == 0 else "cat" if i % 2 else "dog" for i in range(start, stop)],
        "width": list(range(start, stop)),
        "height": [7] * (stop - start),
    }
    with EmbeddingWriter(path, schema) as writer:
        writer.append(plain, {name: values[start:stop] for name, values in features.items()})


def write_store(
    root: Path,
    rows: int = 30,
    part_rows: int = 10,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    dtype: str = "float32",
    failures: tuple[Failure, ...] = (),
    finished: int | None = None,
) -> dict[str, np.ndarray]:
    """A folder of parts; returns its vectors. ``failures``: of the first part. ``finished``: so many parts, and not closed."""
    layout = Layout(root)
    check_store_folder(layout)
    layout.root.mkdir(exist_ok=True)
    manifest = Manifest({}, PROVENANCE, "made-up", (Round(0, "", "", rows),))
    start_job(layout, manifest)
    features = random_features(rows, shapes, dtype)
    for part, start in list(enumerate(range(0, rows, part_rows)))[:finished]:
        stop = min(start + part_rows, rows)
        write_rows(layout.unfinished(part), features, start, stop)
        save_part(
            layout, manifest.round_id, PartRecord(part, start, stop, stop, stop - start, 0, failures=() if part else failures)
        )
    if finished is None:
        close_store(layout, manifest, pa.array([], pa.large_string()))
    return features


def flip_bit(file: Path, position: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def write_single_store(
    path: Path,
    features: Mapping[str, np.ndarray],
    keys: Sequence[str] | None = None,
    labels: Sequence[str | None] | None = None,
    places: Sequence[tuple[int, int]] | None = None,
    dtype: str = "float32",
    **provenance: Any,
) -> Store:
    """Write features by column, float32 ``(rows, …)``, to one file and open it; keys are ``0.jpg``, … by default."""
    rows = len(next(iter(features.values())))
    shapes = {name: values.shape[1:] for name, values in features.items()}
    schema = make_embedding_schema(shapes, provenance, dtype, labels is not None, places is not None)
    columns: dict[str, Sequence[Any]] = {"path": keys or [f"{i}.jpg" for i in range(rows)]}
    columns |= {"label": labels} if labels is not None else {}
    columns |= {"width": [1] * rows, "height": [1] * rows}
    columns |= {"x": [x for x, _ in places], "y": [y for _, y in places]} if places is not None else {}
    with EmbeddingWriter(path, schema) as writer:
        for i in range(0, rows, 1000):
            chunk = slice(i, i + 1000)
            writer.append(
                {name: values[chunk] for name, values in columns.items()},
                {name: values[chunk] for name, values in features.items()},
            )
    return open_store(path)
