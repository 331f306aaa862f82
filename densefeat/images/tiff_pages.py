"""Which pages of a TIFF are its images: the others are smaller copies, masks, or further channels of an image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from densefeat.errors import DecodeError
from densefeat.images.tiff_header import Table, TableReader
from densefeat.images.tiff_stacks import Stack, read_stacks

MAX_PAGES = 100_000  # of a file
FEW_PAGES = 64  # that are looked at where the first image is wanted
_ROUNDING = 2  # pixels by which a smaller copy may be longer or shorter than its width says


@dataclass(frozen=True, slots=True)
class TiffEntry:
    """Where an image of a TIFF is.

    Attributes:
        tables: The tables of its channels, in their order: mostly one.
        plane: Of a stack of which only the first plane has a table: the number of the image's first plane.
        names: Of the channels, if they have any.
        copies: The tables of smaller copies of it, not all of which may be of use.
    """

    tables: tuple[Table, ...]
    plane: int | None = None
    names: tuple[str, ...] = ()
    copies: tuple[Table, ...] = ()


@dataclass(frozen=True)
class TiffIndex:
    """The images of a TIFF. ``first``: the table that tifffile always reads."""

    first: Table
    entries: list[TiffEntry] = field(repr=False)

    @property
    def nbytes(self) -> int:
        return 1000 + 500 * sum(len(entry.tables) + len(entry.copies) for entry in self.entries)

    def find(self, page: int) -> TiffEntry:
        """Return the image of a page, counted from 1. Raises DecodeError where there is none."""
        if not 1 <= page <= len(self.entries):
            raise DecodeError(f"page {page}: the file has {len(self.entries)}")
        return self.entries[page - 1]


def read_tables(file: BinaryIO, most: int) -> list[Table]:
    """Read the tables of the first pages. Raises DecodeError for a file that ends before the first of them."""
    tables = list(TableReader(file).walk(most))
    if not tables:
        raise DecodeError("a TIFF without a page")
    return tables


def list_images(tiff: Any, tables: Sequence[Table], all_pages: bool = False) -> TiffIndex:
    """List the images of a TIFF by its first page, and the tables of its pages.

    ``all_pages``: pages that are damaged, or missing from a declared stack, are listed, too, so that each fails by itself.
    """
    stacks = read_stacks(tiff)
    if stacks is not None and tables[0].is_image:
        return TiffIndex(tables[0], _list_stacks(stacks, tables))
    good = [table for table in tables if all_pages or not table.damaged]
    images = [table for table in good if table.is_image]
    if not images and any(table.has_subfiles for table in good):
        raise DecodeError("the file holds a thumbnail and its image in subfiles, as raw files of cameras do: convert it to RGB")
    largest, marked = (images or good or tables)[0], bool(images)
    entries: list[tuple[Table, list[Table]]] = []
    for table in good or tables:
        if table is largest or ((table.is_image or not marked) and not is_copy(table, largest)):
            entries.append((table, []))
        elif entries and is_copy(table, entries[-1][0]):
            entries[-1][1].append(table)
    return TiffIndex(tables[0], [TiffEntry((table,), copies=tuple(copies)) for table, copies in entries])


def is_copy(table: Table, image: Table) -> bool:
    """Check whether a page may be a smaller copy of an image, marked or not: it has its shape, and at most half its width."""
    if table.damaged or not 0 < 2 * table.width <= image.width + 1:
        return False
    return abs(table.height - table.width * image.height / image.width) <= _ROUNDING


def _list_stacks(stacks: Sequence[Stack], tables: Sequence[Table]) -> list[TiffEntry]:
    count = sum(len(stack.planes) for stack in stacks)
    if len(tables) == 1 < count:  # ImageJ writes one table where the planes follow each other
        return [TiffEntry((tables[0],) * len(stack.planes), stack.planes[0], stack.names) for stack in stacks]
    return [TiffEntry(tuple(_find_table(tables, plane) for plane in stack.planes), names=stack.names) for stack in stacks]


def _find_table(tables: Sequence[Table], plane: int) -> Table:
    return tables[plane] if plane < len(tables) else Table(0, damaged=True)
