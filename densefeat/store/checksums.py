"""Checksums inside a store's Parquet files, so that what has changed on a disk is noticed before it becomes rows.

Between the last row group and the footer, where the format allows any bytes and other readers never look, stand the XXH3 of
each column chunk, row group by row group, then their number, the XXH3 of these and the footer, which is the file's own
checksum, and a mark. What is read is compared chunk by chunk. ``benchmarks/checksums.py`` measures what that costs beside
SHA-256 and Parquet's own checksums of pages, which take several times as long.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from densefeat.base import ColumnChunk, read_chunks
from densefeat.errors import OutputError

_MARK = b"densefe1"
_TRAILER = struct.Struct("<I8s8s")  # the number of chunks, the file's checksum, the mark
_DIGEST_BYTES = 8
_END = struct.Struct("<I4s")  # the length of the footer, and Parquet's mark


def open_file(path: Path) -> pa.MemoryMappedFile:
    """Open a file for pyarrow, mapped into memory, since ranges of rows are read faster so. Raises OSError.

    pyarrow is given no paths: it would take ``emb:v2/manifest.json`` for an address, and needs names that are UTF-8. It is
    given no files or buffers of Python's: its threads may outlive the interpreter, and abort the process when they free one.
    """
    return pa.memory_map(os.fsencode(path))


def map_file(path: Path) -> memoryview:
    """Return the bytes of a file, mapped into memory as long as they are referred to. Raises OSError.

    Reading them through pyarrow would take about as long as their checksum.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")


@dataclass(frozen=True)
class Checksums:
    """The checksums of a Parquet file. ``file``: hexadecimal, of the chunks' checksums and the footer."""

    file: str
    chunks: tuple[bytes, ...]

    def fit(self, data: memoryview, chunk: ColumnChunk, number: int) -> bool:
        """Compare a column chunk of a file's bytes with its checksum. ``number``: its place, row group by row group."""
        return self.chunks[number] == _hash_chunk(data, chunk)


def add_checksums(path: Path) -> str:
    """Add checksums to a Parquet file that was just written; return its own one. Raises OSError."""
    data = map_file(path)
    with open_file(path) as file:
        metadata = pq.read_metadata(file)
        groups = read_chunks(file, metadata.num_columns)
    digests = [_hash_chunk(data, chunk) for group in groups for chunk in group]
    start = len(data) - _END.size - metadata.serialized_size
    footer_and_end = bytes(data[start:])
    chunks = b"".join(digests)
    checksum = _hash_footer(chunks, len(digests), footer_and_end[: -_END.size])
    with open(path, "r+b") as target:
        target.seek(start)
        target.write(chunks + _TRAILER.pack(len(digests), checksum, _MARK) + footer_and_end)
    return checksum.hex()


def read_checksums(data: memoryview, path: Path) -> Checksums | None:
    """Read the checksums in a file's bytes; None where it has none. Raises OutputError where they do not fit its footer."""
    if len(data) < _END.size + _TRAILER.size:
        return None
    length, _ = _END.unpack(data[-_END.size :])
    end = len(data) - _END.size - length  # of the checksums
    if end < _TRAILER.size:
        return None
    count, checksum, mark = _TRAILER.unpack(data[end - _TRAILER.size : end])
    if mark != _MARK:
        return None
    start = end - _TRAILER.size - count * _DIGEST_BYTES
    chunks = bytes(data[start : start + count * _DIGEST_BYTES]) if start >= 0 else b""
    if checksum != _hash_footer(chunks, count, data[end : end + length]):
        raise OutputError(f"{path}: damaged: its footer is not as it was written")
    return Checksums(checksum.hex(), tuple(chunks[i : i + _DIGEST_BYTES] for i in range(0, len(chunks), _DIGEST_BYTES)))


def _hash_footer(chunks: bytes, count: int, footer: bytes | memoryview) -> bytes:
    return xxhash.xxh3_64_digest(b"".join((chunks, count.to_bytes(4, "little"), footer)))


def _hash_chunk(data: memoryview, chunk: ColumnChunk) -> bytes:
    return xxhash.xxh3_64_digest(data[chunk.start : chunk.start + chunk.size])
