"""Verifying a store: all of its files are compared with their checksums."""

from dataclasses import dataclass
from pathlib import Path

from densefeat.errors import OutputError
from densefeat.store.checked_file import CheckedFile
from densefeat.store.damage import find_damaged_parts
from densefeat.store.failures import read_failures
from densefeat.store.layout import Layout
from densefeat.store.manifest import Manifest, PartRecord, list_finished_parts, require_manifest
from densefeat.store.quantized import read_quantized
from densefeat.store.reader import open_store
from densefeat.store.stamps import read_stamps


@dataclass(frozen=True)
class Damage:
    """A file of a store that is missing or not as it was written.

    ``first_row``, ``rows``: of the store's rows, which of them are lost. ``keys``: the keys of the first and the last of them,
    None where they cannot be read.
    """

    problem: str
    first_row: int = 0
    rows: int = 0
    keys: tuple[str, str] | None = None


@dataclass(frozen=True)
class Verification:
    """The state of a store. ``unchecked``: parts that were written before there were checksums, which could be decoded."""

    parts: int
    rows: int
    bytes: int
    unchecked: int
    damages: tuple[Damage, ...]


def verify_store(path: str | Path) -> Verification:
    """Compare all files of a store, a folder or a single file, finished or not, with their checksums.

    Raises UsageError where there is no store, OutputError where its manifest cannot be read.
    """
    path = Path(path)
    return _verify_file(path) if path.is_file() else _verify_folder(Layout(path))


def _verify_file(path: Path) -> Verification:
    size, rows = path.stat().st_size, 0
    try:
        rows = len(open_store(path))
        with CheckedFile(path) as file:
            file.check_all()
            return Verification(1, rows, size, int(not file.checksum), ())
    except OutputError as error:
        return Verification(1, rows, size, 0, (Damage(str(error), 0, rows),))


def _verify_folder(layout: Layout) -> Verification:
    manifest = require_manifest(layout)
    records = list_finished_parts(layout, manifest)
    problems = find_damaged_parts(layout, records)
    damages, first_row = _check_lists(layout, manifest), 0
    for record in records:
        if record in problems:
            damages.append(Damage(problems[record], first_row, record.rows, _read_ends(layout, record)))
        first_row += record.rows
    size, unchecked = sum(record.bytes for record in records), sum(not record.file_checksum for record in records)
    return Verification(len(records), first_row, size, unchecked, tuple(damages))


def _check_lists(layout: Layout, manifest: Manifest) -> list[Damage]:
    """Check the files that have no rows: failures, stamps, and a network in int8."""
    damages = []
    for read in (read_failures, read_stamps, read_quantized):
        try:
            read(layout, manifest)
        except OutputError as error:
            damages.append(Damage(str(error)))
    return damages


def _read_ends(layout: Layout, record: PartRecord) -> tuple[str, str] | None:
    try:
        with CheckedFile(layout.part(record.part), record.file_checksum) as file:
            keys = file.read(["path"])["path"]
        return keys[0].as_py(), keys[-1].as_py()
    except (OutputError, IndexError):
        return None
