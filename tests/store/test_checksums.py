"""Checksums in the files of a store: every bit that flips is noticed, and other programs read the files as before."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

import densefeat
from densefeat.errors import DensefeatError, OutputError
from densefeat.store.checked_file import CheckedFile
from densefeat.store.checksums import add_checksums, map_file, read_checksums
from densefeat.store.manifest import Failure
from support.parquet_files import change_footer, read_footer
from support.stores import flip_bit, random_features, write_rows, write_store


def read_all(path: Path) -> dict[str, Any]:
    store = densefeat.open_store(path)
    columns = {name: store[name].tolist() for name in store.schema.names}
    return columns | {"failures": store.failures, "provenance": store.provenance, "shapes": store.shapes}


def write_folder(root: Path) -> Path:
    write_store(root / "s", rows=6, part_rows=3, failures=(Failure("a.jpg", "decode", "broken"),))
    return root / "s"


def write_file(root: Path) -> Path:
    write_rows(root / "e.parquet", random_features(3), 0, 3)
    return root / "e.parquet"


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_folder, "data/part-00001.parquet"),
        (write_folder, "failures.parquet"),
        (write_folder, "manifest.json"),
        (write_file, ""),
    ],
)
def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path, write: Callable[[Path], Path], name: str) -> None:
    path = write(tmp_path)
    rows = read_all(path)
    file = path / name if name else path
    size = file.stat().st_size
    noticed, positions = 0, range(0, size, 7)
    for position in positions:
        flip_bit(file, position, position % 8)
        try:
            assert read_all(path) == rows, f"byte {position} of {size}"
        except DensefeatError as error:
            noticed += 1
            assert file.name in str(error)
        flip_bit(file, position, position % 8)
    assert noticed > 0.9 * len(positions)  # the spaces of JSON and Parquet's first bytes say nothing
    assert read_all(path) == rows


def test_a_copy_of_another_part_is_noticed(tmp_path: Path) -> None:
    write_store(tmp_path / "s", rows=6, part_rows=3)
    shutil.copyfile(tmp_path / "s/data/part-00001.parquet", tmp_path / "s/data/part-00000.parquet")
    with pytest.raises(DensefeatError, match=r"part-00000\.parquet: damaged, or another file than the store's manifest names"):
        densefeat.open_store(tmp_path / "s")


def test_others_read_the_files(tmp_path: Path) -> None:
    file = write_file(tmp_path)
    keys = read_all(file)["path"]
    assert pq.read_table(file)["path"].to_pylist() == keys
    assert polars.read_parquet(file)["path"].to_list() == keys
    assert [row[0] for row in duckdb.sql(f"select path from '{file}'").fetchall()] == keys


def test_a_file_that_another_program_writes_anew_has_none(tmp_path: Path) -> None:
    file = write_file(tmp_path)
    pq.write_table(pq.read_table(file).slice(1), file)
    assert read_checksums(map_file(file), file) is None
    assert len(densefeat.open_store(file)) == 2


def test_files_with_dictionaries_and_row_groups(tmp_path: Path) -> None:
    file = write_file(tmp_path)
    pq.write_table(pq.read_table(file), file, row_group_size=1)
    checksum = add_checksums(file)
    checksums = read_checksums(map_file(file), file)
    assert checksums
    assert checksums.file == checksum
    assert len(checksums.chunks) == 3 * len(pq.read_schema(file))


def test_a_crafted_footer_with_checksums_that_fit_it(tmp_path: Path) -> None:
    """pyarrow's description of a column chunk ends the process over counts of one level where there are two."""
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"path": ["x"] * 50}), file)
    chunk = pq.read_metadata(file).row_group(0).column(0)
    start, size = chunk.dictionary_page_offset, chunk.total_compressed_size
    change_footer(file, b"\x19\x26\x00\x64", b"\x19\x16\x64")
    data, footer = file.read_bytes(), read_footer(file)
    digest, count = xxhash.xxh3_64_digest(data[start : start + size]), (1).to_bytes(4, "little")
    trailer = digest + count + xxhash.xxh3_64_digest(digest + count + footer) + b"densefe1"
    file.write_bytes(data[: -8 - len(footer)] + trailer + footer + data[-8:])
    assert read_checksums(map_file(file), file)
    with CheckedFile(file) as crafted, pytest.raises(OutputError, match="damaged .Definition level histogram size mismatch"):
        crafted.read()
