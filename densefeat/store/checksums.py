"""Checksums inside a store's Parquet files, so that what has changed on a disk is noticed before it becomes rows.

Between the last row group and the footer, where the format allows any bytes and other readers never look, stand the XXH3 of
each column chunk, row group by row group, then their number, the XXH3 of these and the footer, which is the file's own
checksum, and a mark. What is read is compared chunk by chunk. XXH3 costs a few percent of reading; SHA-256 costs half as much
as reading does, Parquet's own checksums of pages a fifth, and they leave out the pages' headers.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

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


@dataclass(frozen=True)
class Checksums:
    """The checksums of a Parquet file. ``file``: hexadecimal, of the chunks' checksums and the footer."""

    file: str
    chunks: tuple[bytes, ...]

    def fit(self, file: pa.NativeFile, metadata: pq.FileMetaData, group: int, column: int) -> bool:
        """Compare a column chunk with its checksum."""
        return self.chunks[group * metadata.num_columns + column] == _hash_chunk(file, metadata, group, column)


def add_checksums(path: Path) -> str:
    """Add checksums to a Parquet file that was just written; return its own one. Raises OSError."""
    with open_file(path) as file:
        metadata = pq.read_metadata(file)
        chunks = b"".join(_hash_chunks(file, metadata))
        start = file.size() - _END.size - metadata.serialized_size
        footer, end = file.read_at(metadata.serialized_size, start), file.read_at(_END.size, file.size() - _END.size)
    count = len(chunks) // _DIGEST_BYTES
    checksum = _hash_footer(chunks, count, footer)
    with open(path, "r+b") as target:
        target.seek(start)
        target.write(chunks + _TRAILER.pack(count, checksum, _MARK) + footer + end)
    return checksum.hex()


def read_checksums(file: pa.NativeFile, path: Path) -> Checksums | None:
    """Read a file's checksums; None where it has none. Raises OutputError where they do not fit its footer."""
    size = file.size()
    if size < _END.size + _TRAILER.size:
        return None
    length, _ = _END.unpack(file.read_at(_END.size, size - _END.size))
    end = size - _END.size - length  # of the checksums
    if end < _TRAILER.size:
        return None
    count, checksum, mark = _TRAILER.unpack(file.read_at(_TRAILER.size, end - _TRAILER.size))
    if mark != _MARK:
        return None
    start = end - _TRAILER.size - count * _DIGEST_BYTES
    chunks = file.read_at(count * _DIGEST_BYTES, start) if start >= 0 else b""
    if checksum != _hash_footer(chunks, count, file.read_at(length, end)):
        raise OutputError(f"{path}: damaged: its footer is not as it was written")
    return Checksums(checksum.hex(), tuple(chunks[i : i + _DIGEST_BYTES] for i in range(0, len(chunks), _DIGEST_BYTES)))


def _hash_footer(chunks: bytes, count: int, footer: bytes) -> bytes:
    return xxhash.xxh3_64_digest(chunks + count.to_bytes(4, "little") + footer)


def _hash_chunks(file: pa.NativeFile, metadata: pq.FileMetaData) -> Iterator[bytes]:
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            yield _hash_chunk(file, metadata, group, column)


def _hash_chunk(file: pa.NativeFile, metadata: pq.FileMetaData, group: int, column: int) -> bytes:
    chunk = metadata.row_group(group).column(column)
    file.seek(chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset)
    return xxhash.xxh3_64_digest(file.read_buffer(chunk.total_compressed_size))
