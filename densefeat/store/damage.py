"""Damage of a store's parts: files that are missing, or not as they were written."""

from collections.abc import Sequence

from densefeat.base import progress_bar
from densefeat.errors import OutputError
from densefeat.store.checked_file import CheckedFile, check_footer
from densefeat.store.layout import Layout
from densefeat.store.manifest import PartRecord


def find_footer_damage(layout: Layout, record: PartRecord) -> str | None:
    """Describe what is wrong with a finished part's size or footer; None if nothing is. Its rows are not looked at."""
    path = layout.part(record.part)
    try:
        if (size := path.stat().st_size) != record.bytes:
            return f"{path}: damaged: it has {size:,} bytes, not {record.bytes:,}"
        check_footer(path, record.file_checksum)
    except OSError as error:
        return f"{path}: {error.strerror}"
    except OutputError as error:
        return str(error)
    return None


def find_damaged_parts(layout: Layout, records: Sequence[PartRecord]) -> dict[PartRecord, str]:
    """Compare finished parts with their checksums, with a progress bar; return those that are damaged, and what is wrong.

    The rows of parts without checksums are decoded.
    """
    damaged = {}
    with progress_bar("checking", len(records), "parts") as advance:
        for record in records:
            if problem := find_footer_damage(layout, record) or _find_column_damage(layout, record):
                damaged[record] = problem
            advance(1)
    return damaged


def _find_column_damage(layout: Layout, record: PartRecord) -> str | None:
    path = layout.part(record.part)
    try:
        with CheckedFile(path, record.file_checksum) as file:
            if file.metadata.num_rows != record.rows:
                return f"{path}: damaged: it has {file.metadata.num_rows:,} rows, not {record.rows:,}"
            file.check_all()
    except OutputError as error:
        return str(error)
    return None
