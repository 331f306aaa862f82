"""Where a report may write: not into a store; beside ``--out``, under a name nobody typed, over its own files alone."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import check_target
from densefeat.errors import OutputError, UsageError
from densefeat.store.layout import Layout
from densefeat.store.manifest import read_manifest

MAP_KEY = b"densefeat_map"  # in the schema's metadata of a map's points
_MAX_HEADER = 4096  # bytes


def check_output(out: Path) -> None:
    """UsageError inside a store's folder, OutputError where the file cannot be made."""
    home = out.parent.resolve()
    for folder in (home, *home.parents):
        if _is_store_folder(folder):
            raise UsageError(f"output {str(out)!r} is inside the store {str(folder)!r}: name a file outside of it")
    check_target(out)


def _is_store_folder(folder: Path) -> bool:
    layout = Layout(folder)
    try:
        return layout.data.is_dir() and read_manifest(layout) is not None
    except OutputError:  # another program's manifest.json
        return False


def csv_beside(out: Path, header: Sequence[str]) -> Path:
    """NAME.csv beside NAME.png. UsageError where that is there and does not begin with this header: it is someone else's."""
    path = out.with_suffix(".csv")
    if path.is_file() and _first_line(path) != ",".join(header).encode():
        raise _in_the_way(path, out)
    check_output(path)
    return path


def _first_line(path: Path) -> bytes:
    """Empty where the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.readline(_MAX_HEADER).rstrip(b"\r\n")
    except OSError:
        return b""


def points_beside(out: Path) -> Path:
    """NAME.parquet beside NAME.html. UsageError where that is there and is not a map's."""
    path = out.with_suffix(".parquet")
    if path.is_file() and MAP_KEY not in _metadata_of(path):
        raise _in_the_way(path, out)
    check_output(path)
    return path


def _metadata_of(path: Path) -> dict[bytes, bytes]:
    """Empty of what is no Parquet."""
    try:
        return pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}


def _in_the_way(path: Path, out: Path) -> UsageError:
    told = "is there, and was not written by this command: move it away, or give another --out"
    return UsageError(f"output {str(out)!r}: {str(path)!r} beside it {told}")
