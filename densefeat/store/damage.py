"""Damage of a store's parts: files that are missing, or not as they were written."""

from collections.abc import Sequence

from densefeat.base import progress_bar
from densefeat.errors import OutputError
from densefeat.store.checked_file import CheckedFile
from densefeat.store.layout import Layout
from densefeat.store.manifest import PartRecord


def find_footer_damage(layout: Layout, record: PartRecord) -> str | None:
    """Describe what is wrong with a finished part's size or footer; None if nothing is. Its rows are not looked at."""
    return _find_damage(layout, record, columns=False)


def find_damaged_parts(layout: Layout, records: Sequence[PartRecord]) -> dict[PartRecord, str]:
    """Compare finished parts with their checksums, with a progress bar; return those that are damaged, and what is wrong.

    The rows of parts without checksums are decoded.
    """
    damaged = {}
    with progress_bar("checking", len(records), "parts") as advance:
        for record in records:
            if problem := _find_damage(layout, record, columns=True):
                damaged[record] = problem
            advance(1)
    return damaged


def _find_damage(layout: Layout, record: PartRecord, columns: bool) -> str | None:
    path = layout.part(record.part)
    try:
        with CheckedFile(path, record.file_checksum) as file:
            if (size := path.stat().st_size) != record.bytes:
                return f"{path}: has {size:,} bytes, not {record.bytes:,}"
            if file.metadata.num_rows != record.rows:
                return f"{path}: has {file.metadata.num_rows:,} rows, not {record.rows:,}"
            if columns:
                file.check_all()
    except (OSError, OutputError) as error:
        return str(error)
    return None
