"""The pages of a file as images of their own: pages of TIFFs, frames of animations.

What is needed for every page of a file, such as where its pages are, is read once and kept while its pages are read.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from densefeat.base import shorten_text
from densefeat.errors import DecodeError, UsageError
from densefeat.images import tiff
from densefeat.images.byte_cache import ByteCache
from densefeat.images.decode import DecodedImage, decode, decode_dicom, decode_tiff
from densefeat.images.dicom_header import is_dicom
from densefeat.images.frames import Frames, count_frames, may_have_frames, open_frames
from densefeat.images.guards import MAX_PIXELS
from densefeat.images.memory import MEMORY
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule
from densefeat.images.sampled import HEAD_BYTES
from densefeat.images.stream import ImageItem, Source, make_unreadable_item
from densefeat.images.tiff_pages import MAX_PAGES, TiffIndex

FIRST, ALL = "first", "all"
_READERS = 8  # threads that read headers: they mostly wait for the disk
_HEADERS = 1024  # read at a time
_CACHE_BYTES = 2**28  # of encoded files, and again of their frames, that are kept for the next page


def parse_pages(pages: str | int) -> str | int:
    """Return ``"first"``, ``"all"`` or a number from 1. Raises UsageError for anything else."""
    if pages in (FIRST, ALL):
        return pages
    if isinstance(pages, str) and pages.isascii() and pages.isdigit() and len(pages) < 10:
        pages = int(pages)
    if type(pages) is not int or pages < 1:
        raise UsageError(f"pages {shorten_text(repr(pages))}: give first, all, or the number of a page from 1")
    return pages


@dataclass(frozen=True)
class _File:
    """An encoded image in memory."""

    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data)


class PageCache:
    """What is kept of the files whose pages are read at the moment, for all threads; pickled empty."""

    def __init__(self) -> None:
        self.files: ByteCache[_File] = ByteCache(_CACHE_BYTES)
        self.indices: ByteCache[TiffIndex] = ByteCache(_CACHE_BYTES)
        self.frames: ByteCache[Frames] = ByteCache(_CACHE_BYTES)


@dataclass(frozen=True, slots=True)
class PageItem(ImageItem):
    """A page of the file at ``position`` of the source of whole files."""

    position: int = 0
    cache: PageCache | None = None

    def decode(self, decoder: str = "torchvision", max_pixels: int = MAX_PIXELS, rule: PixelRule = PHOTOGRAPHS) -> DecodedImage:
        with MEMORY.hold():
            return replace(self._decode(decoder, max_pixels, rule), page=self.page)

    def _decode(self, decoder: str, max_pixels: int, rule: PixelRule) -> DecodedImage:
        assert self.cache is not None
        assert self.page is not None
        kind, opener = self._find_opener()
        if kind == "tiff":
            return decode_tiff(opener, max_pixels, rule, self.page, self.tables())
        data = self._read_once()
        if kind == "dicom":
            return replace(decode_dicom(data, max_pixels, rule, self.page), several=False)
        has_frames = may_have_frames(data[:HEAD_BYTES])
        if self.page == 1:
            decoded = decode(data, decoder, max_pixels, rule)
            return replace(decoded, several=decoded.several and not has_frames)  # of AVIF and HEIC only the first is read
        if not has_frames:
            raise DecodeError(f"page {self.page}: the file has 1")
        frames = self.cache.frames.get((self.position, max_pixels), partial(open_frames, data, max_pixels))
        return frames.decode(self.page, max_pixels, rule)

    def tables(self) -> TiffIndex:
        """Return where the pages of the file, a TIFF, are."""
        assert self.cache is not None
        return self.cache.indices.get(self.position, lambda: tiff.read_index(self._find_opener()[1]))

    def _find_opener(self) -> tuple[str, Callable[[], BinaryIO]]:
        """Return the kind of the file, and what opens it: a TIFF on this machine is read in parts."""
        if self.open is not None and self.path() is not None:
            with self.open() as file:
                kind = _find_kind(file.read(HEAD_BYTES))
            if kind == "tiff":
                return kind, self.open
        data = self._read_once()
        return _find_kind(data[:HEAD_BYTES]), partial(io.BytesIO, data)

    def _read_once(self) -> bytes:
        assert self.cache is not None
        return self.cache.files.get(self.position, lambda: _File(self.read())).data


def _find_kind(head: bytes) -> str:
    """Tell by a file's first bytes how its pages are found."""
    if is_dicom(head):  # which may begin as a TIFF does
        return "dicom"
    return "tiff" if head[:4] in tiff.MAGIC else "other"


class PagedSource:
    """A source of the pages of another source's files, file by file.

    For all pages the constructor reads the headers of all files once, so that every position is known and a job can resume at
    any of them. A file that cannot be read has one position, and DecodeError is raised when that is decoded.

    Args:
        source: A source of files; with a length where all pages are wanted.
        pages: ``"all"``, or the number of a page from 1; a file without that page is an image that cannot be decoded.
        max_pixels: Limit of an image that has to be decoded as a whole.

    Raises:
        UsageError: Other ``pages``, or a source of unknown length.
    """

    def __init__(self, source: Source, pages: str | int, max_pixels: int = MAX_PIXELS) -> None:
        self.pages = parse_pages(pages)
        if self.pages == FIRST:
            raise UsageError("pages 'first': that is the source itself")
        self.source = source
        self.labelled = source.labelled
        self.cache = PageCache()
        self.failures: dict[int, DecodeError] = {}
        self.length: int | None = source.length
        if self.pages != ALL:
            return
        if source.length is None:
            raise UsageError("all pages need an input whose length is known beforehand: a folder, list or table, not a stream")
        counts = np.ones(source.length, np.int64)
        for position, count in enumerate(_count_all(source, max_pixels)):
            if isinstance(count, DecodeError):
                self.failures[position] = count
            else:
                counts[position] = count
        self.ends = np.cumsum(counts)
        self.length = int(counts.sum())

    def items(self, start: int, stop: int) -> Iterator[ImageItem]:
        if self.pages != ALL:
            number = int(self.pages)
            for position, item in enumerate(self.source.items(start, stop), start):
                yield self._make_item(cast(ImageItem, item), position, number)
            return
        stop = min(stop, self.length or 0)
        if start >= stop:
            return
        first, last = np.searchsorted(self.ends, (start, stop - 1), side="right").tolist()
        begin = int(self.ends[first - 1]) if first else 0
        for position, item in enumerate(self.source.items(first, last + 1), first):
            end = int(self.ends[position])
            for number in range(max(start, begin) - begin, min(stop, end) - begin):
                yield self._make_item(cast(ImageItem, item), position, number + 1)
            begin = end

    def _make_item(self, item: ImageItem, position: int, page: int) -> ImageItem:
        if failure := self.failures.get(position):
            return make_unreadable_item(item.key, item.label, str(failure), failure.stage)
        return PageItem(item.key, item.label, item.read, item.path, item.open, page, position, self.cache)

    def keys(self) -> pa.LargeBinaryArray:
        """Return the file's key for each of its pages."""
        if self.pages != ALL:
            return self.source.keys()
        return self.source.keys().take(pa.array(np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=0))))

    def fingerprint(self) -> str:
        """Hash keys, labels and numbers of pages, which determine the page at each position: SHA-256 in hexadecimal."""
        digest = hashlib.sha256(f"{self.source.fingerprint()} pages {self.pages} ".encode())
        if self.pages == ALL:
            digest.update(self.ends.astype("<i8").tobytes())
        return digest.hexdigest()


def _count_all(source: Source, max_pixels: int) -> Iterator[int | DecodeError]:
    """Count the pages of each file in order; an error says why that cannot be done."""
    items = source.items(0, source.length or 0)
    with ThreadPoolExecutor(_READERS) as pool:
        while chunk := list(islice(items, _HEADERS)):
            yield from pool.map(lambda item: _try_to_count(cast(ImageItem, item), max_pixels), chunk)


def _try_to_count(item: ImageItem, max_pixels: int) -> int | DecodeError:
    try:
        count = _count_pages(item, max_pixels)
        if count > MAX_PAGES:
            return DecodeError(f"{count:,} pages are more than the limit of {MAX_PAGES:,}")
        return max(count, 1)
    except DecodeError as error:
        return DecodeError(str(error), error.stage)  # without the frames, which keep objects alive
    except Exception as error:  # file systems have errors of many kinds
        return DecodeError(f"{type(error).__name__}: {error}", "read")


def _count_pages(item: ImageItem, max_pixels: int) -> int:
    with MEMORY.hold():
        opener = item.open or partial(io.BytesIO, item.read())
        with opener() as file:
            if _find_kind(file.read(HEAD_BYTES)) != "tiff":
                file.seek(0)
                return count_frames(file, max_pixels)
        return len(tiff.read_index(opener).entries)
