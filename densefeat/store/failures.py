"""The images without a row: ``failures.parquet`` in a store's folder, ``NAME.failures.jsonl`` beside a single file."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from densefeat.base import output_errors, parse_json
from densefeat.errors import OutputError
from densefeat.store.checked_file import CheckedFile, write_checked_table
from densefeat.store.layout import Layout
from densefeat.store.manifest import Failure, Manifest

_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("x", pa.int32()),
        pa.field("y", pa.int32()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
    ]
)


_PAGED_SCHEMA = _SCHEMA.append(pa.field("page", pa.int32()))  # where any failure is of a page; readers expect no more


def write_failures(path: Path, failures: Sequence[tuple[Failure, int]]) -> str:
    """Write ``failures.parquet``: each failure with the number of its part. Return the file's checksum."""
    rows = [{**asdict(failure), "part": part} for failure, part in failures]
    schema = _SCHEMA if all(failure.page is None for failure, _ in failures) else _PAGED_SCHEMA
    return write_checked_table(path, pa.Table.from_pylist(rows, schema))


def read_failures(layout: Layout, manifest: Manifest, before_part: int | None = None) -> list[tuple[Failure, int]]:
    """Read ``failures.parquet``, which appears when a round is closed: each failure with the number of its part.

    ``before_part``: only those of earlier parts. Raises OutputError where the file is damaged, or missing.
    """
    if before_part == 0 or not (manifest.failures_checksum or layout.failures.exists()):
        return []
    # while a round is open, the file may be that of its end already
    checksum = manifest.failures_checksum if manifest.complete else ""
    with CheckedFile(layout.failures, checksum) as file:
        if not any(map(file.schema.equals, (_SCHEMA, _PAGED_SCHEMA))):
            raise OutputError(f"{layout.failures}: damaged: its columns are {', '.join(file.schema.names)}")
        entries = file.read().to_pylist()
    pairs = [(entry.pop("part"), entry) for entry in entries]
    return [(Failure(**entry), part) for part, entry in pairs if before_part is None or part < before_part]


def count_failures(layout: Layout) -> int:
    """Count the entries of ``failures.parquet``; 0 before the store is closed."""
    if not layout.failures.exists():
        return 0
    with CheckedFile(layout.failures) as file:
        return file.metadata.num_rows


def failures_file(path: Path) -> Path:
    """Return where the failures of a single Parquet file are: ``NAME.failures.jsonl`` beside it."""
    return path.with_name(path.name.removesuffix(".parquet") + ".failures.jsonl")


def write_failure_lines(path: Path, failures: Sequence[Failure]) -> None:
    """Write a ``.failures.jsonl``; fields without a value are left out."""
    with output_errors(path), open(path, "w", encoding="utf-8") as lines:
        for failure in failures:
            fields = {name: value for name, value in asdict(failure).items() if value is not None}
            lines.write(json.dumps(fields, ensure_ascii=False) + "\n")


def is_failure_lines(path: Path) -> bool:
    """Recognize a ``.failures.jsonl``."""
    try:
        read_failure_lines(path)
    except OutputError:
        return False
    return True


def read_failure_lines(path: Path) -> list[Failure]:
    """Read a ``.failures.jsonl``; where there is none, there are no failures. Raises OutputError where it is damaged."""
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8") as lines:
            return [Failure(**parse_json(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
