"""What it costs to compare a store's rows with their checksums while they are read, beside other checksums.

    python benchmarks/checksums.py

One part of made-up rows, with the vectors of DenseNet-121's blocks, in a temporary folder that stays in the cache. All arms
read the same column into an array in one thread: without a check, with the XXH3 of each column chunk as stores do, with SHA-256
of the same bytes, and with the checksums that Parquet has for pages. They take turns within each round.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.bench import Report, benchmark_options, rate_rows, time_rounds
from densefeat.store import CheckedFile, EmbeddingWriter, make_embedding_schema

SHAPES = {"block1": (256,), "block2": (512,), "block3": (1024,), "block4": (1024,)}
PIECE = 256  # rows that are written, and decoded, at a time
COLUMNS = "=arm | ms=milliseconds:.1f | times as fast as without a check (range)=ratio"


def write_part(path: Path, rows: int) -> None:
    generator = np.random.default_rng(0)
    with EmbeddingWriter(path, make_embedding_schema(SHAPES, {})) as writer:
        for start in range(0, rows, PIECE):
            count = min(PIECE, rows - start)
            plain = {"path": [f"{start + i:08}.jpg" for i in range(count)], "width": [224] * count, "height": [224] * count}
            vectors = {name: np.abs(generator.normal(size=(count, *shape))) for name, shape in SHAPES.items()}
            writer.append(plain, vectors)


def write_page_checksums(part: Path, path: Path) -> None:
    """Write the part again, as the store does but with Parquet's checksums of pages."""
    with pq.ParquetFile(part) as file:
        schema = file.schema_arrow
        split = [f"{name}.list.element" for name in SHAPES]
        with pq.ParquetWriter(
            path, schema, compression="zstd", compression_level=1, use_dictionary=False, use_byte_stream_split=split,
            write_page_checksum=True,
        ) as writer:  # fmt: skip
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group), row_group_size=file.metadata.row_group(group).num_rows)


def copy(batches: Iterable[pa.RecordBatch], out: np.ndarray) -> None:
    """Copy vectors into an array, as reading a store does."""
    start = 0
    for batch in batches:
        out[start : start + len(batch)] = batch.column(0).flatten().to_numpy().reshape(len(batch), -1)
        start += len(batch)


def read(path: Path, name: str, pages: bool = False) -> None:
    with pq.ParquetFile(path, memory_map=True, pre_buffer=False, page_checksum_verification=pages) as file:
        out = np.empty((file.metadata.num_rows, *SHAPES[name]), np.float32)
        copy(file.iter_batches(PIECE, columns=[name], use_threads=False), out)


def read_checked(path: Path, name: str) -> None:
    with CheckedFile(path) as file:
        out = np.empty((file.metadata.num_rows, *SHAPES[name]), np.float32)
        copy(file.iter_batches(PIECE, [name], use_threads=False), out)


def read_with_sha256(path: Path, name: str) -> None:
    metadata = pq.read_metadata(path)
    with open(path, "rb") as file:
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(metadata.schema.to_arrow_schema().get_field_index(name))
            file.seek(chunk.data_page_offset)
            hashlib.sha256(file.read(chunk.total_compressed_size)).digest()
    read(path, name)


@click.command()
@click.option("--rows", type=click.IntRange(1), default=8192, show_default=True)
@benchmark_options(rounds=21)
def main(rows: int, rounds: int, file: Path | None) -> None:
    """Measure and print."""
    report = Report(f"reading a column of {rows:,} rows, with checksums and without", file)
    with tempfile.TemporaryDirectory() as folder:
        part, paged = Path(folder, "part.parquet"), Path(folder, "paged.parquet")
        write_part(part, rows)
        write_page_checksums(part, paged)
        for name in ("block1", "block4"):
            arms: dict[str, Callable[[], None]] = {
                "no check": partial(read, part, name),
                "XXH3 of chunks (ours)": partial(read_checked, part, name),
                "Parquet's of pages": partial(read, paged, name, pages=True),
                "SHA-256": partial(read_with_sha256, part, name),
            }
            measured = rate_rows(time_rounds(arms, rounds), "no check", rows)
            report.add(name, [row | {"milliseconds": row["seconds"] * 1e3} for row in measured], COLUMNS)


if __name__ == "__main__":
    main()
