"""A map's points as Parquet: what embedding-atlas and others open."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import atomic_file, output_errors
from densefeat.map.rows import Shown
from densefeat.search import place_fields
from densefeat.store import MAP_KEY


def write_table(
    path: Path, shown: Shown, points: Mapping[str, np.ndarray], values: Mapping[str, Sequence[str | None] | np.ndarray]
) -> None:
    """``path``, ``x`` and ``y`` of a tile, then ``values`` by name, then BLOCK_x and BLOCK_y, float32, of each block.

    ``points``: ``(n, 2)`` by block. Marked as a map's in the schema's metadata. Whole or not at all. Raises OutputError where
    it cannot be written.
    """
    columns = {
        name: shown.store.column(name).take(shown.rows) for name in place_fields(shown.store) if name not in ("label", *values)
    }
    columns |= {name: pa.array(given) for name, given in values.items()}
    for block, places in points.items():
        columns |= {f"{block}_{axis}": pa.array(places[:, number]) for number, axis in enumerate("xy")}
    with atomic_file(path) as beside, output_errors(path):
        pq.write_table(pa.table(columns).replace_schema_metadata({MAP_KEY: b"1"}), beside, compression="zstd")
