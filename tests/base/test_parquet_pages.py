"""Where the pages of Parquet files lie: as pyarrow says of its own files, and clear errors for what no writer would write."""

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat.base.parquet_pages import Page, read_chunks, read_pages
from densefeat.errors import DecodeError
from support.parquet_files import encode_integer, read_footer, write_footer

TABLE = pa.table(
    {
        "image": pa.array([{"bytes": b"%d" % i * 50, "path": f"{i % 3}.png"} for i in range(1000)]),
        "label": pa.array([i % 7 or None for i in range(1000)]),
        "boxes": pa.array([[{"x": float(i)}] * (i % 3) for i in range(1000)]),
        "flag": pa.array([i % 2 == 0 for i in range(1000)]),
    },
    metadata={"long": "x" * 40_000},
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(compression="zstd", data_page_version="2.0", row_group_size=99),
        dict(use_dictionary=False, compression="none", write_statistics=False, data_page_size=500, write_batch_size=10),
        dict(write_page_checksum=True, write_page_index=True, store_schema=False, version="1.0"),
    ],
)
def test_chunks_and_pages_are_those_that_pyarrow_knows(options: dict, tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "x.parquet", **options)
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    with open(tmp_path / "x.parquet", "rb") as file:
        groups = read_chunks(file, metadata.num_columns)
        assert len(groups) == metadata.num_row_groups
        for group, chunks in enumerate(groups):
            assert len(chunks) == metadata.num_columns
            for column, chunk in enumerate(chunks):
                known = metadata.row_group(group).column(column)
                assert chunk.size == known.total_compressed_size
                assert chunk.start == (known.dictionary_page_offset if known.has_dictionary_page else known.data_page_offset)
                pages = list(read_pages(file, chunk))
                assert [page.is_dictionary for page in pages] == [known.has_dictionary_page] + [False] * (len(pages) - 1)
                assert sum(page.values for page in pages if not page.is_dictionary) == known.num_values
                assert sum(page.unpacked for page in pages) < known.total_uncompressed_size


# a footer's row groups (field 4): one of one column, whose description (field 3) is what is here
def make_footer(*fields: bytes) -> bytes:
    return b"\x49\x1c\x19\x1c\x3c" + b"".join(fields) + b"\x00" * 4


SIZE, START = b"\x76" + encode_integer(4), b"\x26" + encode_integer(4)  # fields 7 and 9


@pytest.mark.parametrize(
    ("footer", "match"),
    [
        (b"", "its footer ends too early"),
        (make_footer(SIZE, START)[:-1], "its footer ends too early"),
        (b"\x48\xff\xff\xff\xff\x7f", "its footer ends too early"),  # text of 32 GiB
        (b"\x49\xfc\xff\xff\xff\xff\x7f\x00", "its footer ends too early"),  # 32 G structures
        (b"\x00", "no field 4 of the right type"),
        (b"\x48\x01x\x00", "no field 4 of the right type"),
        (b"\x49\x1c\x19\x0c\x00\x00", "a row group of 0 columns where there are 1"),
        (b"\x49\x18\x01x\x00", "no field 1 of the right type"),
        (make_footer(SIZE), "no field 9 of the right type"),
        (make_footer(SIZE, b"\x21"), "no field 9 of the right type"),  # true
        (make_footer(SIZE, START, b"\x06" + encode_integer(9) + encode_integer(5)), "has field 9 twice"),
        (make_footer(b"\x76" + encode_integer(-4), START), "a column has -4 bytes at 4 in a file of"),
        (make_footer(SIZE, b"\x26" + encode_integer(2**40)), "a column has 4 bytes at 1,099,511,627,776 in a file of"),
        (b"\x16" + b"\xff" * 10 + b"\x01\x00", "a number of more than 64 bits"),
        (b"\x1c" * 100_000 + b"\x00" * 100_000, "structures in structures without end"),
        (b"\x19" + b"\x19" * 100_000, "lists in lists without end"),
        (b"\x1b\x00\x00", "a value of type 11"),
        (bytes(2**23 + 1), "a footer of 8,388,609 bytes: at most 8,388,608 are read"),
    ],
)
def test_crafted_footers(footer: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(TABLE, path)
    write_footer(path, footer)
    with open(path, "rb") as file, pytest.raises(DecodeError, match=f"damaged Parquet: .*{match}"):
        read_chunks(file, 1)


def test_each_damaged_byte_of_a_footer_is_an_error_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(TABLE.select([1]).replace_schema_metadata(), path, store_schema=False)
    footer = read_footer(path)
    for place in range(len(footer)):
        for byte in (0x00, 0x7F, 0x80, 0xFF, footer[place] ^ 1):
            write_footer(path, footer[:place] + bytes([byte]) + footer[place + 1 :])
            with open(path, "rb") as file:
                check_harmless(lambda file=file: [list(read_pages(file, chunk)) for (chunk,) in read_chunks(file, 1)])


def check_harmless(read: Callable[[], object]) -> None:
    try:
        read()
    except DecodeError as error:
        assert str(error).startswith("damaged Parquet: ")


def make_page(packed: int, unpacked: int, *rest: bytes) -> bytes:
    return b"\x15\x00\x15" + encode_integer(unpacked) + b"\x15" + encode_integer(packed) + b"".join(rest) + b"\x00"


VALUES = b"\x2c\x15" + encode_integer(3) + b"\x00"  # field 5: a page of 3 values


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (make_page(5, 9, VALUES), "a page of 5 bytes goes beyond the end of its column"),
        (make_page(-5, 9, VALUES), "a page of -5 bytes goes beyond the end"),
        (make_page(4, -9, VALUES), "a page that unpacks to -9 bytes: at most"),
        (make_page(4, 2**31 - 1, VALUES), "a page that unpacks to 2,147,483,647 bytes: at most 1,074,790,400 are read"),
        (make_page(4, 9), "no field 1 of the right type"),
        (make_page(4, 9, VALUES)[:-1], "a page without a whole header"),
        (make_page(4, 9, VALUES, b"\x38" + encode_integer(2**20)), "a page without a whole header"),
    ],
)
def test_crafted_pages(header: bytes, match: str) -> None:
    def read(header: bytes) -> list[Page]:
        file = io.BytesIO(b"PAR1" + header + b"data" + make_end(len(header) + 4))
        ((chunk,),) = read_chunks(file, 1)
        return list(read_pages(file, chunk))

    assert read(make_page(4, 9, VALUES)) == [Page(is_dictionary=False, values=3, unpacked=9)]
    with pytest.raises(DecodeError, match=match):
        read(header)


def make_end(size: int) -> bytes:
    footer = make_footer(b"\x76" + encode_integer(size), START)
    return footer + len(footer).to_bytes(4, "little") + b"PAR1"
