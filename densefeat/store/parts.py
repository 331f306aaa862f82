"""Parquet files of a store as pyarrow reads them, and the paths of their rows."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from densefeat.errors import OutputError
from densefeat.store.manifest import Failure


def open_file(path: Path) -> pa.MemoryMappedFile:
    """Open a file for pyarrow, mapped into memory, since ranges of rows are read faster so. Raises OSError.

    pyarrow is given no paths: it would take ``emb:v2/manifest.json`` for an address, and needs names that are UTF-8. It is
    given no files or buffers of Python's: its threads may outlive the interpreter, and abort the process when they free one.
    """
    return pa.memory_map(os.fsencode(path))


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn pyarrow's and the system's errors on a damaged or missing file into OutputError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{path}: missing or damaged ({' '.join(str(error).split())})") from error


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
        with parquet_errors(part):
            chunks += pq.read_table(open_file(part), columns=[name])[name].cast(pa.large_string()).chunks
    return pa.concat_arrays(chunks)
