"""What commands may replace or delete: files that densefeat wrote, which it recognizes by their names and content."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import check_output_name, check_target, output_errors
from densefeat.errors import OutputError, UsageError
from densefeat.store.checksums import open_file
from densefeat.store.layout import PART, Layout
from densefeat.store.manifest import Manifest, list_finished_parts, read_records
from densefeat.store.reader import is_store

MAP_KEY = b"densefeat_map"  # in the schema's metadata of a map's points
_MAX_HEADER = 4096  # bytes


def check_store_folder(layout: Layout) -> None:
    """Raise OutputError where no store can be started or resumed: a file, or a folder with other people's files.

    Raises UsageError for a name that none of a folder can be.
    """
    root = layout.root
    check_output_name(root)
    if root.exists() and not root.is_dir():
        raise OutputError(f"output {str(root)!r} is a file: give a folder, or a name that ends in .parquet")
    with output_errors(root):
        existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(f"output {str(root)!r} cannot be written: no permission to write in {str(existing)!r}")
        if existing != root:
            return
        others = sorted(path.name for path in root.iterdir() if not _is_remnant(path, layout))
    if others and not layout.manifest.exists():
        raise OutputError(f"output {str(root)!r} is no store of densefeat and not empty ({others[0]}): give a new folder")


def _is_remnant(path: Path, layout: Layout) -> bool:
    """Check whether a path was left by a job that ended before it wrote its manifest: locks, half a manifest, empty folders."""
    if path in (layout.data, layout.work):
        return not any(below.is_file() for below in path.rglob("*"))
    return path.name.startswith((".lock", f".{layout.manifest.name}."))


def check_store_file(out: Path, images: str | Path, overwrite: bool) -> None:
    """Raise OutputError where a single file of rows cannot be written, or would replace anything but such a file."""
    check_target(out)
    if not out.exists():
        return
    if os.path.exists(images) and out.samefile(images):
        raise OutputError(f"output {str(out)!r} is the input: give another name")
    if not overwrite and not is_store(out):
        raise OutputError(f"output {str(out)!r} exists and is not a file of embeddings: give another name, or --overwrite")


def remove_leftovers(layout: Layout, manifest: Manifest) -> None:
    """Delete what earlier jobs left in a store's folder: parts, records and half-written files that this job does not have."""
    kept = {record.part for record in list_finished_parts(layout, manifest)}
    records = list(read_records(layout, manifest))
    recorded = {layout.record(record.part) for record in records}
    unfinished = {layout.unfinished(record.part) for record in records if not record.finished or manifest.waits}
    with output_errors(layout.root):
        for path in layout.data.iterdir():
            if (match := PART.fullmatch(path.name)) and int(match[1]) not in kept:
                path.unlink()
        for path in layout.root.glob(".*.partial"):
            path.unlink()
        for path in layout.work.iterdir():
            if path.is_file() and path not in unfinished:
                path.unlink()
        for path in layout.records.iterdir():
            if path.is_file() and path not in recorded:
                path.unlink()
        shutil.rmtree(layout.closing, ignore_errors=True)
        if len(manifest.rounds) == 1:
            layout.failures.unlink(missing_ok=True)


def remove_work(layout: Layout) -> None:
    """Delete ``work/`` once the manifest names all parts; if the process ends before that, the next job does it."""
    shutil.rmtree(layout.work, ignore_errors=True)


def check_output(out: Path) -> None:
    """Raise UsageError where a file would lie inside a store's folder, OutputError where it cannot be written."""
    home = out.parent.resolve()
    for folder in (home, *home.parents):
        if is_store(folder):
            raise UsageError(f"output {str(out)!r} is inside the store {str(folder)!r}: name a file outside of it")
    check_target(out)


def choose_csv_file(out: Path, header: Sequence[str]) -> Path:
    """Return NAME.csv beside NAME.png. Raises UsageError where a file of that name begins with another header."""
    path = out.with_suffix(".csv")
    if path.is_file() and _read_first_line(path) != ",".join(header).encode():
        raise _make_conflict_error(path, out)
    check_output(path)
    return path


def _read_first_line(path: Path) -> bytes:
    """Return a file's first line, empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.readline(_MAX_HEADER).rstrip(b"\r\n")
    except OSError:
        return b""


def choose_points_file(out: Path) -> Path:
    """Return NAME.parquet beside NAME.html. Raises UsageError where a file of that name is not of a map."""
    path = out.with_suffix(".parquet")
    if path.is_file() and MAP_KEY not in _read_metadata(path):
        raise _make_conflict_error(path, out)
    check_output(path)
    return path


def _read_metadata(path: Path) -> dict[bytes, bytes]:
    """Return the metadata of a Parquet file's schema, empty for any other file."""
    try:
        return pq.read_schema(open_file(path)).metadata or {}
    except (OSError, pa.ArrowException):
        return {}


def _make_conflict_error(path: Path, out: Path) -> UsageError:
    return UsageError(
        f"output {str(out)!r}: {str(path)!r} beside it exists and was not written by this command: move it away,"
        " or give another --out"
    )
