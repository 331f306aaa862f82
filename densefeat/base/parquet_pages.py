"""Where the pages of a Parquet file lie, and to how many bytes they unpack, read before pyarrow unpacks them.

pyarrow does not say what a page promises, and its description of a column chunk ends the process where statistics do not fit.
So the footer and the pages' headers, which are structures of Thrift's compact protocol, are read here, in Python. What is
damaged raises DecodeError (stage ``read``).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

from densefeat.errors import DecodeError

_MAGIC = b"PAR1"
_MAX_FOOTER = 2**23  # bytes: about 75,000 column chunks, such as 30 million rows of a store in one file
_HEADERS = (2**8, 2**14, 2**20)  # bytes in which the header of a page is sought: it may hold the least and greatest value
_MAX_PAGE = 2**30 + 2**20  # bytes unpacked: the largest image, and what is beside it
_MAX_DEPTH = 16  # of structures and lists: Parquet's have 6
_DICTIONARY = 2  # a type of page
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """The bytes of a file that hold one leaf of the schema in a row group."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page: whether it is a dictionary, its number of values, and its bytes when unpacked."""

    is_dictionary: bool
    values: int
    unpacked: int


def read_chunks(file: BinaryIO, leaves: int) -> tuple[tuple[ColumnChunk, ...], ...]:
    """Read from a file's footer the column chunks of each row group, one for each of so many leaves of the schema, in order."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > size - 8:
        raise _damage("it does not end as a Parquet file does")
    if length > _MAX_FOOTER:
        raise _damage(f"a footer of {length:,} bytes: at most {_MAX_FOOTER:,} are read")
    file.seek(size - 8 - length)
    groups = _parse_footer(file.read(length), size)
    if wrong := [len(chunks) for chunks in groups if len(chunks) != leaves]:
        raise _damage(f"a row group of {wrong[0]:,} columns where there are {leaves:,}")
    return groups


@lru_cache(16)  # a reader in any order opens the same few files again and again
def _parse_footer(data: bytes, file_size: int) -> tuple[tuple[ColumnChunk, ...], ...]:
    try:
        footer, _ = _read_struct(data, 0)
    except IndexError as error:
        raise _damage("its footer ends too early") from error
    groups = _get(footer, 4, list)
    return tuple(tuple(_make_chunk(_get(chunk, 3, dict), file_size) for chunk in _get(group, 1, list)) for group in groups)


def _make_chunk(fields: dict[int, Any], file_size: int) -> ColumnChunk:
    start, size, dictionary = _get(fields, 9, int), _get(fields, 7, int), fields.get(11)
    if start == 0 and fields.get(5) != 0:  # where the file's mark is
        raise _damage("a column with values and no place")
    if isinstance(dictionary, int) and dictionary > 0 and not 0 < start <= dictionary:  # where pyarrow begins to read, too
        start = dictionary
    if min(start, size) < 0 or start + size > file_size:
        raise _damage(f"a column has {size:,} bytes at {start:,} in a file of {file_size:,}")
    return ColumnChunk(start, size)


def read_pages(file: BinaryIO, chunk: ColumnChunk) -> Iterator[Page]:
    """Read the headers of a chunk's pages. Raises DecodeError also where a page unpacks to too many bytes."""
    at, end = chunk.start, chunk.start + chunk.size
    while at < end:
        header, length = _read_page_header(file, at, end)
        packed, unpacked = _get(header, 3, int), _get(header, 2, int)
        at += length + packed
        if packed < 0 or at > end:
            raise _damage(f"a page of {packed:,} bytes goes beyond the end of its column")
        if not 0 <= unpacked <= _MAX_PAGE:
            raise _damage(f"a page that unpacks to {unpacked:,} bytes: at most {_MAX_PAGE:,} are read")
        details = next((header[field] for field in (5, 7, 8) if field in header), None)
        yield Page(_get(header, 1, int) == _DICTIONARY, _get(details, 1, int), unpacked)


def _read_page_header(file: BinaryIO, at: int, end: int) -> tuple[dict[int, Any], int]:
    """Read the header at a place, and its length."""
    for limit in _HEADERS:
        file.seek(at)
        data = file.read(min(limit, end - at))
        try:
            return _read_struct(data, 0)
        except IndexError:
            if len(data) < limit:
                break
    raise _damage("a page without a whole header")


def _damage(reason: str) -> DecodeError:
    return DecodeError(f"damaged Parquet: {reason}", "read")


def _get(fields: Any, field: int, kind: type) -> Any:
    value = fields.get(field) if isinstance(fields, dict) else None
    if type(value) is not kind:
        raise _damage(f"its footer or a page has no field {field} of the right type")
    return value


def _read_struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Read a structure: its fields by number, and where it ends. IndexError where the data end before.

    One that has a field twice is damaged, too: pyarrow could take the other one.
    """
    if depth > _MAX_DEPTH:
        raise _damage("its footer or a page holds structures in structures without end")
    fields: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _read_integer(data, at)
        if field in fields:
            raise _damage(f"its footer or a page has field {field} twice")
        if kind in _INTEGERS and (byte := data[at]) < 0x80:  # nearly all are small
            fields[field], at = (byte >> 1) ^ -(byte & 1), at + 1
        elif kind in (_TRUE, _FALSE):
            fields[field] = kind == _TRUE
        else:
            fields[field], at = _read_value(data, at, kind, depth)
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Read a value, and where it ends. IndexError where the data end before."""
    if kind in _INTEGERS:
        return _read_integer(data, at)
    if kind == _BINARY:
        length, at = _read_varint(data, at)
        return _take(data, at, length)
    if kind in (_LIST, _SET):
        return _read_list(data, at, depth + 1)
    if kind == _STRUCT:
        return _read_struct(data, at, depth + 1)
    if kind in (_TRUE, _FALSE, _BYTE):  # in lists; as fields, truth values have no bytes
        return _take(data, at, 1)
    if kind == _DOUBLE:
        return _take(data, at, 8)
    raise _damage(f"its footer or a page has a value of type {kind}")  # a map: Parquet has none


def _read_list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    if depth > _MAX_DEPTH:
        raise _damage("its footer or a page holds lists in lists without end")
    kind, count = data[at] & 15, data[at] >> 4
    at += 1
    if count == 15:
        count, at = _read_varint(data, at)
    items = []
    for _ in range(count):  # each has a byte at least
        item, at = _read_value(data, at, kind, depth)
        items.append(item)
    return items, at


def _take(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    end = at + length
    if end > len(data):
        raise IndexError
    return data[at:end], end


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = data[at], 7
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    while (byte := data[at]) & 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise _damage("its footer or a page has a number of more than 64 bits")
    return value | byte << shift, at + 1
