"""What the commands on stores may replace or delete: files that densefeat wrote, by their names, marks and records."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import (
    Recognizer,
    check_output_name,
    check_target,
    has_header,
    is_plain_file,
    is_plain_folder,
    match_temporary,
    output_errors,
    parse_json,
    printable,
    refuse_links,
    refuse_stranger,
    remove_folder,
)
from densefeat.errors import OutputError, UsageError
from densefeat.store.checksums import open_file
from densefeat.store.failures import failures_file, is_failure_lines
from densefeat.store.layout import CLOSING_FILE, LOCK, MEASURED, PART, RECORD, Layout
from densefeat.store.manifest import Manifest, list_finished_parts, read_manifest, read_records
from densefeat.store.measured import is_measured
from densefeat.store.quantized import is_quantized
from densefeat.store.reader import is_store

_log = logging.getLogger(__name__)
_WORK_FILE = re.compile(rf"{PART.pattern}|{MEASURED.pattern}")
MAP_KEY = b"densefeat_map"  # in the schema's metadata of a map's points


def check_store_folder(layout: Layout) -> None:
    """Raise OutputError where no store can be started or resumed: a file, or a folder with other people's files.

    Raises UsageError for a name that none of a folder can be, and where a store's own file or folder is a symbolic link.
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
    refuse_links([*layout.folders, layout.manifest, layout.failures, layout.stamps, layout.quantized])


def _is_remnant(path: Path, layout: Layout) -> bool:
    """Check whether a path was left by a job that ended before it wrote its manifest.

    That is locks, half a manifest, empty folders, what a pass over the images has measured, and a network in int8.
    """
    if path in (layout.data, layout.work):
        return is_plain_folder(path) and all(
            (below in layout.folders and is_plain_folder(below)) or _is_measurement(below, layout) for below in path.rglob("*")
        )
    if path == layout.quantized:
        return is_plain_file(path) and is_quantized(path)
    halves = (layout.manifest.name, layout.quantized.name)
    return is_plain_file(path) and bool(LOCK.fullmatch(path.name) or match_temporary(path.name) in halves)


def _is_measurement(path: Path, layout: Layout) -> bool:
    """Check for what a pass over the images has measured, or half of it."""
    if path.parent != layout.work or not is_plain_file(path):
        return False
    return match_temporary(path.name) == layout.measured.name or (path == layout.measured and is_measured(path))


def check_store_file(out: Path, images: str | Path) -> None:
    """Raise UsageError where a single file of rows, or that of its failures, would replace anything but such a file.

    Raises OutputError where it cannot be written, or is the input.
    """
    if out.is_file() and os.path.exists(images) and out.samefile(images):
        raise OutputError(f"output {str(out)!r} is the input: give another name")
    check_target(out, is_store)
    check_target(failures_file(out), is_failure_lines)


def list_leftovers(layout: Layout, manifest: Manifest) -> list[Path]:
    """List what earlier jobs left in a store's folder: parts, records and half-written files that this job does not have.

    Raises UsageError where somebody else's file has a name that the job may need, OutputError where a file is in the place of a
    folder.
    """
    for folder in layout.folders:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"output {str(folder)!r} is a file where a folder is needed: move it away")
    current = read_manifest(layout)
    recorded = {layout.part(record.part) for record in list_finished_parts(layout, current)} if current else set()
    recorded |= {layout.data / f"{record.stem}.parquet" for record in _list_named(layout.records, RECORD) if _is_work(record)}
    running = current is not None and not current.complete  # then work/ is of its job
    with output_errors(layout.root):
        own = _list_own(layout.data, PART, lambda path: path in recorded or is_store(path))
        for folder, names in _work_places(layout):
            own += _list_own(folder, names, None if running else _is_work)
        names_of_root = {layout.manifest.name, layout.failures.name, layout.stamps.name, layout.quantized.name}
        own += [path for path in layout.root.iterdir() if match_temporary(path.name) in names_of_root and is_plain_file(path)]
    if manifest.settings.get("calibration") is None and is_quantized(layout.quantized):
        own.append(layout.quantized)  # an earlier job's
    own += [layout.failures] if len(manifest.rounds) == 1 and layout.failures.exists() else []
    records = list(read_records(layout, manifest))
    kept = {layout.part(record.part) for record in list_finished_parts(layout, manifest)}
    kept |= {layout.record(record.part) for record in records}
    kept |= {layout.unfinished(record.part) for record in records if not record.finished or manifest.waits}
    return [path for path in own if path not in kept]


def remove_work(layout: Layout) -> None:
    """Delete a job's files in ``work/``, and the folder if it holds nothing else, once the manifest names all parts.

    If the process ends before that, the next job does it. Other people's files stay, and a warning names one of them.
    """
    if not (is_plain_folder(layout.work) and is_plain_folder(layout.records)):
        return  # none of a job's: the user may have a folder of this name
    named = [path for folder, names in _work_places(layout) for path in _list_named(folder, names)]
    own = [path for path in named if is_plain_file(path) and (match_temporary(path.name) or _is_work(path))]
    others = sorted({*layout.work.rglob("*")} - {*own, *layout.folders})
    if others and not own:
        return
    with output_errors(layout.root):
        for path in own:
            path.unlink(missing_ok=True)
    for folder in (layout.closing, layout.records, layout.work):
        remove_folder(folder)
    if others:
        _log.warning("%s stays: densefeat did not write %s", printable(str(layout.work)), printable(str(others[0])))


def empty_closing(layout: Layout) -> None:
    """Delete what an earlier attempt to close the round has staged. Raises UsageError where a link has the name of a part."""
    with output_errors(layout.root):
        for path in _list_own(layout.closing, CLOSING_FILE, None):
            path.unlink()


def _work_places(layout: Layout) -> tuple[tuple[Path, re.Pattern[str]], ...]:
    """Return the folders of a job with the names that it gives to files there."""
    return (layout.work, _WORK_FILE), (layout.records, RECORD), (layout.closing, CLOSING_FILE)


def _list_named(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """List what has a name of densefeat's in a folder, or was left while a file of such a name was written."""
    entries = sorted(folder.iterdir()) if is_plain_folder(folder) else []
    return [path for path in entries if names.fullmatch(match_temporary(path.name) or path.name)]


def _list_own(folder: Path, names: re.Pattern[str], is_ours: Recognizer | None) -> list[Path]:
    """List a folder's files with densefeat's names. Raises UsageError where ``is_ours`` does not recognize one of them."""
    named = _list_named(folder, names)
    for path in named:
        if match_temporary(path.name) is None:
            refuse_stranger(path, is_ours)
    return [path for path in named if is_plain_file(path)]


def _is_work(path: Path) -> bool:
    """Recognize a file of ``work/`` by its content: a part, a record, or the manifest that closes a round."""
    if path.suffix == ".parquet":
        return is_store(path)
    if MEASURED.fullmatch(path.name):
        return is_measured(path)
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and ({"round", "part", "reached"} <= content.keys() or is_store(path.parent))


def check_output(out: Path, is_ours: Recognizer) -> None:
    """Raise UsageError where a file would lie inside a store's folder or replace one that ``is_ours`` does not recognize.

    Raises OutputError where it cannot be written.
    """
    home = out.parent.resolve()
    for folder in (home, *home.parents):
        if is_store(folder):
            raise UsageError(f"output {str(out)!r} is inside the store {str(folder)!r}: name a file outside of it")
    check_target(out, is_ours)


def choose_csv_file(out: Path, header: Sequence[str]) -> Path:
    """Return NAME.csv beside NAME.png. Raises UsageError where a file of that name begins with another header."""
    path = out.with_suffix(".csv")
    check_output(path, has_header(header))
    return path


def choose_points_file(out: Path) -> Path:
    """Return NAME.parquet beside NAME.html. Raises UsageError where a file of that name is not of a map."""
    path = out.with_suffix(".parquet")
    check_output(path, is_points_file)
    return path


def is_points_file(path: Path) -> bool:
    """Recognize the points of a map."""
    try:
        return MAP_KEY in (pq.read_schema(open_file(path)).metadata or {})
    except (OSError, pa.ArrowException):
        return False
