"""The tables of a TIFF are counted before tifffile makes an object of each of their numbers."""

import io
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import tifffile

from densefeat.errors import DecodeError
from densefeat.images.tiff import open_tiff
from densefeat.images.tiff_header import ENTRY_BYTES, TableReader, count_table_bytes


def written(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def count_bytes(data: bytes, pages: int = 64) -> int:
    return count_table_bytes(TableReader(io.BytesIO(data)).walk(pages))


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"bigtiff": True, "byteorder": ">"}])
def test_numbers_are_counted(options: dict[str, Any]) -> None:
    tiles = 64 * 64
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024), np.uint8)
    size = count_bytes(written(pixels, tile=(16, 16), **options))
    assert 2 * tiles * ENTRY_BYTES < size < 2 * tiles * ENTRY_BYTES + 10_000  # offsets and byte counts


def test_pages_are_counted_up_to_a_number() -> None:
    pixels = np.zeros((5, 16, 16), np.uint8)
    data = written(pixels, photometric="minisblack")
    one, three, all_pages = (count_bytes(data, pages) for pages in (1, 3, 64))
    assert 0 < one < three < all_pages


def test_what_is_read_takes_no_more_than_counted() -> None:
    pixels = np.zeros((4096, 4096), np.uint8)
    data = written(pixels, tile=(16, 16), description="x" * 10**6, metadata=None)
    counted = count_bytes(data)
    tracemalloc.start()
    try:
        open_tiff(lambda: io.BytesIO(data), "", 10**6)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most - len(data) < counted < 3 * most


def test_a_chain_of_pages_that_is_a_circle_ends() -> None:
    page = struct.pack("<HHHIII", 1, 258, 3, 1, 8, 8)
    assert count_bytes(b"II*\0" + struct.pack("<I", 8) + page) == ENTRY_BYTES


def test_more_entries_than_a_file_can_need_fail() -> None:
    page = struct.pack("<HHHIII", 1, 324, 4, 2**31, 8, 0)
    with pytest.raises(DecodeError, match=r"tables of 2,147,483,648 entries, more than the limit of 16,777,216"):
        count_bytes(b"II*\0" + struct.pack("<I", 8) + page)


@pytest.mark.parametrize(
    "data", [b"II*\0", b"II*\0\x08\0\0\0", b"MM\0+" + bytes(12), b"II*\0\xff\xff\xff\xff", b"II+\0" + b"\xff" * 12]
)
def test_a_header_that_is_cut_off_counts_as_far_as_it_goes(data: bytes) -> None:
    assert count_bytes(data) == 0
