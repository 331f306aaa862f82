"""A look at a TIFF's tables before tifffile reads them: it makes a Python number of each entry."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from densefeat.errors import DecodeError

ENTRY_BYTES = 64  # that a number of a table takes in memory, as long as it is read
_TEXTS, _TEXT_COPIES = (1, 2, 7), 3  # types of tags that are read as one value
_PRIVATE = 2**15  # from this tag on those of companies, most of which nothing reads
_MAX_TAGS = 4096  # of a page: tifffile reads no more
_MAX_ENTRIES = 2**24  # of all tables: the strips or tiles of a slide of 10^12 pixels
_NEW_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _TILE_WIDTH, _SUBFILES = 254, 255, 256, 257, 322, 330  # tags
_OLD_REDUCED = 2  # of the old tag
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}  # types of tags that hold one whole number
_DAMAGED = (struct.error, OSError, OverflowError, ValueError)
REDUCED, MASK = 1, 4  # bits of a page's subfile type


@dataclass(frozen=True, slots=True)
class Table:
    """What the table of a page ("IFD") says of it.

    Attributes:
        offset: Where it lies in the file.
        kind: Subfile type: bits that say whether the page is a smaller copy or a mask.
        tiled: Its pixels are in tiles rather than strips.
        has_subfiles: Other images belong to the page, such as smaller copies.
        entries, text: How many numbers and bytes of text its tags have.
        damaged: It cannot be read, and is the last that is known.
    """

    offset: int
    kind: int = 0
    width: int = 0
    height: int = 0
    tiled: bool = False
    has_subfiles: bool = False
    entries: int = 0
    text: int = 0
    damaged: bool = False

    @property
    def is_image(self) -> bool:
        """Whether the page is neither marked as a smaller copy nor as a mask."""
        return not self.kind & (REDUCED | MASK)


class TableReader:
    """A reader of the tables of a TIFF, without what their tags refer to."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        file.seek(0)
        head = file.read(16)
        self.order = "<" if head[:2] == b"II" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        count, tag, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
        self.count, self.tag, self.offset = (struct.Struct(self.order + name) for name in (count, tag, offset))
        self.first = self.offset.unpack_from(head, 8 if big else 4)[0] if len(head) >= (16 if big else 8) else 0

    def walk(self, most: int) -> Iterator[Table]:
        """Read the tables in their order, up to ``most``; one that is damaged is the last, and so is one before a circle."""
        offset, seen = self.first, set()
        for _ in range(most):
            if not offset or offset in seen:
                return
            seen.add(offset)
            try:
                table, following = self._read(offset)
            except _DAMAGED:
                yield Table(offset, damaged=True)
                return
            yield table
            offset = following

    def read(self, offset: int) -> Table:
        """Read the table at an offset."""
        try:
            return self._read(offset)[0]
        except _DAMAGED:
            return Table(offset, damaged=True)

    def _read(self, offset: int) -> tuple[Table, int]:
        """Read a table, and the offset of the next one."""
        from tifffile import TIFF

        self.file.seek(offset)
        (tags,) = self.count.unpack(self.file.read(self.count.size))
        if tags > _MAX_TAGS:
            raise ValueError(tags)
        content = self.file.read(tags * self.tag.size + self.offset.size)
        values: dict[int, int] = {}
        entries = text = 0
        for code, kind, count, value in self.tag.iter_unpack(content[: tags * self.tag.size]):
            if kind not in _TEXTS:
                entries += count
            elif code < _PRIVATE or code in TIFF.TAG_LOAD:
                text += count
            if code <= _SUBFILES and kind in _NUMBERS:
                values.setdefault(code, struct.unpack_from(self.order + _NUMBERS[kind], value)[0])
        subfile = values.get(_NEW_SUBFILE, 0) or (REDUCED if values.get(_OLD_SUBFILE) == _OLD_REDUCED else 0)
        width, height = values.get(_WIDTH, 0), values.get(_HEIGHT, 0)
        table = Table(offset, subfile, width, height, _TILE_WIDTH in values, _SUBFILES in values, entries, text)
        end = content[tags * self.tag.size :]  # cut off in a file of one page that some cameras write
        return table, self.offset.unpack(end)[0] if len(end) == self.offset.size else 0


def count_table_bytes(tables: Iterable[Table]) -> int:
    """Count the bytes of memory for the tags of pages.

    Raises DecodeError where they have more entries than a file can need.
    """
    entries = text = 0
    for table in tables:
        entries, text = entries + table.entries, text + table.text
        if entries > _MAX_ENTRIES:
            raise DecodeError(f"tables of {entries:,} entries, more than the limit of {_MAX_ENTRIES:,} of a TIFF")
    return ENTRY_BYTES * entries + _TEXT_COPIES * text
