"""Plain columns over the parts of a store: the paths of their rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.store.checked_file import CheckedFile
from densefeat.store.manifest import Failure


def find_known_paths(paths: pa.LargeStringArray, parts: Sequence[Path], failures: Sequence[Failure]) -> np.ndarray:
    """Return bool, for each path: whether it has a row in these parts or is among the failures."""
    failed = pa.array([failure.path for failure in failures], pa.large_string())
    mask = np.zeros(len(paths), bool)
    for known in (read_paths(parts), failed):
        mask |= pc.is_in(paths, value_set=known).to_numpy(zero_copy_only=False)
    return mask


def read_paths(parts: Sequence[Path]) -> pa.LargeStringArray:
    """Read the ``path`` of every row of these parts, in their order."""
    return read_column(parts, "path")


def read_column(parts: Sequence[Path], name: str) -> pa.LargeStringArray:
    """Read a column of text of every row of these parts, in their order."""
    chunks = [pa.array([], pa.large_string())]
    for part in parts:
        with CheckedFile(part) as file:
            chunks += file.read([name])[name].cast(pa.large_string()).chunks
    return pa.concat_arrays(chunks)
