"""Walk over the items of a DICOM's sequences without making objects of them: there may be millions, nested without end."""

import io
import struct
from typing import BinaryIO

from densefeat.errors import DecodeError

UNDEFINED = 0xFFFFFFFF  # a length: until a delimiter
_ITEM, _ENDS = 0xFFFEE000, (0xFFFEE00D, 0xFFFEE0DD)
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")  # a length of four bytes
_MAX_READS = 1_000_000  # two or three for each element
_MAX_VALUE = 2**26  # bytes of an element beside the pixels


class BoundedReader:
    """A file of which only so many pieces are read, none of them large."""

    def __init__(self, file: BinaryIO, reads: int = _MAX_READS, size: int = _MAX_VALUE) -> None:
        self.file, self.left, self.size = file, reads, size
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise DecodeError("a DICOM of too many elements, items or fragments")
        if size > self.size:
            raise DecodeError(f"an element of {size:,} bytes in a DICOM's header, more than the limit of {self.size:,}")
        return self.file.read(size)


def skip_items(reader: BoundedReader, implicit: bool, little_endian: bool) -> None:
    """Move behind a sequence of undefined length, from its first item. Raises DecodeError where it does not end."""
    _skip(reader, True, implicit, "<" if little_endian else ">")


def find_item(data: bytes, index: int, implicit: bool, little_endian: bool) -> bytes | None:
    """Find the bytes of an item of a sequence; None where there are not so many."""
    reader, order = BoundedReader(io.BytesIO(data)), "<" if little_endian else ">"
    for number in range(index + 1):
        start = reader.tell()
        head = reader.read(8)
        if len(head) < 8 or _read_tag(head, order) != _ITEM:
            return None
        length = struct.unpack(order + "L", head[4:])[0]
        if length == UNDEFINED:
            _skip(reader, False, implicit, order)
        else:
            reader.seek(reader.tell() + length)
        if number == index:
            return data[start : reader.tell()]
    return None


def _skip(reader: BoundedReader, in_sequence: bool, implicit: bool, order: str) -> None:
    """Move behind the sequence, or the item, of undefined length that a reader is in."""
    around = [(in_sequence, implicit)]
    while around:
        in_sequence, implicit = around[-1]
        head = reader.read(8)
        tag = _read_tag(head, order)
        if tag in _ENDS:
            around.pop()
            continue
        if in_sequence and tag != _ITEM:
            raise DecodeError("damaged: a sequence without items in a DICOM's header")
        kind = b"" if in_sequence or implicit else head[4:6]
        if kind in _LONG:
            head = b"\0\0\0\0" + reader.read(4)
        if len(head) < 8:
            raise DecodeError("truncated: a DICOM that ends in its header")
        short = kind.isalpha() and kind.isupper() and kind not in _LONG
        length = struct.unpack(order + "H", head[6:])[0] if short else struct.unpack(order + "L", head[4:])[0]
        if length == UNDEFINED:
            around.append((not in_sequence, implicit or kind == b"UN"))
        else:
            reader.seek(reader.tell() + length)


def _read_tag(head: bytes, order: str) -> int:
    if len(head) < 4:
        raise DecodeError("truncated: a DICOM that ends in its header")
    group, number = struct.unpack(order + "HH", head[:4])
    return group << 16 | number
