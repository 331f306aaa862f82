"""The images without a row: ``failures.parquet`` in a store's folder, ``NAME.failures.jsonl`` beside a single file."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import atomic_file, output_errors
from densefeat.errors import OutputError
from densefeat.store.layout import Layout
from densefeat.store.manifest import Failure
from densefeat.store.parts import open_file

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


def write_failures(path: Path, failures: Sequence[tuple[Failure, int]]) -> None:
    """Write ``failures.parquet``: each failure with the number of its part."""
    rows = [{**asdict(failure), "part": part} for failure, part in failures]
    with atomic_file(path) as beside, output_errors(path), open(beside, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), file, compression="zstd")


def read_failures(layout: Layout, before_part: int | None = None) -> list[tuple[Failure, int]]:
    """Read ``failures.parquet``, which appears when a round is closed: each failure with the number of its part.

    ``before_part``: only those of earlier parts. Raises OutputError where the file is damaged.
    """
    if before_part == 0 or not layout.failures.exists():
        return []
    try:
        entries = pq.read_table(open_file(layout.failures), schema=_SCHEMA).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise OutputError(f"{layout.failures}: missing or damaged ({reason}); extract with --overwrite") from error
    pairs = [(entry.pop("part"), entry) for entry in entries]
    return [(Failure(**entry), part) for part, entry in pairs if before_part is None or part < before_part]


def count_failures(layout: Layout) -> int:
    """Count the entries of ``failures.parquet``; 0 before the store is closed."""
    return pq.read_metadata(open_file(layout.failures)).num_rows if layout.failures.exists() else 0


def failures_file(path: Path) -> Path:
    """Return where the failures of a single Parquet file are: ``NAME.failures.jsonl`` beside it."""
    return path.with_name(path.name.removesuffix(".parquet") + ".failures.jsonl")


def write_failure_lines(path: Path, failures: Sequence[Failure]) -> None:
    """Write a ``.failures.jsonl``; fields without a value are left out."""
    with output_errors(path), open(path, "w", encoding="utf-8") as lines:
        for failure in failures:
            fields = {name: value for name, value in asdict(failure).items() if value is not None}
            lines.write(json.dumps(fields, ensure_ascii=False) + "\n")


def read_failure_lines(path: Path) -> list[Failure]:
    """Read a ``.failures.jsonl``; where there is none, there are no failures. Raises OutputError where it is damaged."""
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8") as lines:
            return [Failure(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
