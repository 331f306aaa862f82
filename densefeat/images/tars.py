"""Tar files with images as members, as WebDataset writes them, indexed by their headers and read in place."""

import os
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from densefeat.base import describe_error
from densefeat.errors import DecodeError, MissingColumn, UsageError
from densefeat.images.files import EXTENSIONS
from densefeat.images.folders import Folder, is_hidden, leaves_folder
from densefeat.images.label_text import clean_label
from densefeat.images.remarks import LeftOut
from densefeat.images.stamps import Stamps, stamp_open_file
from densefeat.images.stream import ImageItem, IndexedSource, printable_key

_MAX_LABEL_BYTES = 1000
_MAX_HEADER_BYTES = 2**20  # long names and attributes
_MAX_PADDING = 2**26  # bytes of zeros after an archive: more are not searched for another one
_MAX_LINKS = 40  # that lead from one to the next
_EXTENSIONS_NAMED = 20  # in a message
_OTHER_IMAGES = (".jxl", ".tga", ".dng", ".svg")  # formats that are not read
_GZIP = b"\x1f\x8b"
_Place = tuple[int, int]  # the offset and size of a member's bytes


@dataclass(frozen=True)
class TarMembers(IndexedSource):
    """A source of images in tar files: position ``i`` is ``sizes[i]`` bytes at ``offsets[i]`` of ``shards[tars[i]]``."""

    shards: tuple[str, ...] = field(default=(), repr=False)
    tars: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32), repr=False)
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    shard_stamps: tuple[str | None, ...] = field(default=(), repr=False)

    def item(self, position: int, key: str, label: str | None) -> ImageItem:
        shard, offset, size = self.shards[self.tars[position]], int(self.offsets[position]), int(self.sizes[position])
        return ImageItem(key, label, partial(self.folder.read_range, shard, offset, size))

    def stamps(self) -> Stamps:
        files = pa.array(map(printable_key, self.shards), pa.large_string())
        return Stamps(files, pa.array(self.shard_stamps, pa.large_string()), self.tars.astype(np.int64))


@dataclass(frozen=True)
class PackedIndex:
    """The images of one tar file in compact arrays, since a job may have thousands of them.

    ``failures``: why an image cannot be read, by its number in the file; ``extensions``: some of those that members have.
    """

    keys: pa.LargeBinaryArray
    labels: pa.LargeStringArray
    offsets: np.ndarray
    sizes: np.ndarray
    failures: dict[int, str]
    extensions: set[str]
    left_out: LeftOut
    stamp: str | None


@dataclass
class Archive:
    """The members of one archive. A tar file may hold several, one behind the other, which share no samples and no links.

    ``images``: name, place if it has one of its own, and why it cannot be read; ``places``: of plain files, None where several
    have the same name; ``labels``: by the name of the member without the extension; ``not_labels``: why there is none.
    """

    images: list[tuple[str, _Place | None, str | None]] = field(default_factory=list)
    places: dict[str, _Place | None] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str | None] = field(default_factory=dict)
    not_labels: dict[str, str | None] = field(default_factory=dict)

    def find_label(self, image: str) -> tuple[str | None, str | None]:
        """Return the label of an image, and why it has none if one cannot be read.

        The label's member is named like the image up to one of its dots. The last dot that there is a label for counts: names
        may have dots of their own, though in WebDataset's layout the first one ends the name of a sample.
        """
        head, slash, sample = image.rpartition("/")
        while "." in sample:
            sample = sample.rpartition(".")[0]
            name = head + slash + sample
            if name in self.not_labels:
                return None, self.not_labels[name]
            if name in self.labels:
                return self.labels[name], None
        return None, None

    def follow_link(self, name: str) -> _Place:
        """Return the place of what a link leads to. Raises DecodeError where it is not exactly one file of the archive."""
        target = name
        for _ in range(_MAX_LINKS):
            if target not in self.links:
                break
            target = self.links[target]
        place = self.places.get(target)
        if place is None:
            what = "which occurs more than once" if target in self.places else "which the tar file does not hold"
            raise DecodeError(f"a link to {printable_key(target)!r}, {what}", "read")
        return place

    def holds(self, name: str) -> bool:
        """Check for a member of this name, or members in a folder of this name."""
        return name in self.places or name in self.links or name in self._folders

    @cached_property
    def _folders(self) -> set[str]:
        return {str(folder) for name in self.places for folder in PurePosixPath(name).parents}


class TarIndex:
    """The images of one tar file, by its headers."""

    def __init__(self, shard: str, label_column: str | None) -> None:
        self.shard = shard
        self.label_ending = None if label_column is None else "." + label_column.lstrip(".")
        self.keys: list[str] = []
        self.labels: list[str | None] = []
        self.places: list[_Place] = []
        self.failures: dict[int, str] = {}
        self.extensions: set[str] = set()
        self.left_out = LeftOut()
        self.stamp: str | None = None  # the tar file's state
        self.numbers: dict[str, int] = {}  # of images, by name
        self.archive = Archive()

    def add(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        """Add a member of the current archive. ``file``: where its content is read if it is a label."""
        if member.isdir():
            return
        name = member.name.removeprefix("./")
        is_image = name.lower().endswith(EXTENSIONS)
        folder, _, last = name.rpartition("/")
        if is_hidden(last) or _has_hidden_part(folder):
            if is_image:
                self.left_out.hidden.add(name)
            return
        place = (member.offset_data, member.size) if member.isreg() and not member.issparse() else None
        if place is not None:
            self.archive.places[name] = None if name in self.archive.places else place
        elif member.islnk() or member.issym():
            self.archive.links[name] = _find_target(member, name)
        if is_image:
            self._add_image(name, place)
        elif name.lower().endswith(_OTHER_IMAGES):
            self.left_out.add(name)
        if place is not None and self._is_label(name):
            self._add_label(name, place, file)
        if len(self.extensions) < _EXTENSIONS_NAMED:
            self.extensions.add(last.partition(".")[2])

    def _add_image(self, name: str, place: _Place | None) -> None:
        failure = None
        if leaves_folder(name):
            failure = "a member's name that leads out of the tar file"
        elif name in self.numbers:
            failure = f"repeated: the same as member {self.numbers[name]} of the images in this tar file"
        elif printable_key(name) != name:
            failure = "the name is not valid UTF-8"
        elif place is None and name not in self.archive.links:
            failure = "not a regular member of the tar file"
        self.numbers.setdefault(name, len(self.keys) + len(self.archive.images))
        self.archive.images.append((name, place, failure))

    def _is_label(self, name: str) -> bool:
        return self.label_ending is not None and name.endswith(self.label_ending)

    def _add_label(self, name: str, place: _Place, file: BinaryIO) -> None:
        sample = name.removesuffix(self.label_ending or "")
        offset, size = place
        if size > _MAX_LABEL_BYTES:
            problem = f"its label, {printable_key(name)!r}, has more than {_MAX_LABEL_BYTES:,} bytes"
            self.archive.not_labels[sample] = problem
            return
        file.seek(offset)
        text = file.read(size).decode("utf-8", "backslashreplace")
        label = clean_label(text)
        if (other := self.archive.labels.setdefault(sample, label)) != label:
            self.archive.not_labels[sample] = f"it has two labels, {other!r} and {label!r}"

    def end_archive(self, file: BinaryIO) -> None:
        """Look up the links and labels of the current archive, whose members are now all known, and begin another one."""
        for name in filter(self._is_label, self.archive.links):
            try:
                self._add_label(name, self.archive.follow_link(name), file)
            except DecodeError as error:
                self.archive.not_labels[name.removesuffix(self.label_ending or "")] = str(error)
        for name, place, failure in self.archive.images:
            label, problem = self.archive.find_label(name)
            try:
                place = place or ((0, 0) if failure else self.archive.follow_link(name))
            except DecodeError as error:
                place, failure = (0, 0), str(error)
            self._append(f"{self.shard}/{name}", label, place, failure or problem)
        for name, target in self.archive.links.items():
            if "." not in name.rpartition("/")[2] and not self.archive.holds(target):  # perhaps a folder of images
                reason = f"a link to {printable_key(target)!r}, which the tar file does not hold"
                self._append(f"{self.shard}/{name}", None, (0, 0), reason)
        self.archive = Archive()

    def fail(self, reason: str) -> None:
        """Add one item for the rest of the tar file."""
        self._append(self.shard, None, (0, 0), reason)

    def _append(self, key: str, label: str | None, place: _Place, failure: str | None) -> None:
        if failure is not None:
            self.failures[len(self.keys)] = failure
        self.keys.append(key)
        self.labels.append(label)
        self.places.append(place)

    def pack(self) -> PackedIndex:
        places = np.array(self.places, np.int64).reshape(-1, 2)
        return PackedIndex(
            pa.array(map(os.fsencode, self.keys), pa.large_binary()),
            pa.array(self.labels, pa.large_string()),
            places[:, 0],
            places[:, 1],
            self.failures,
            self.extensions,
            self.left_out,
            self.stamp,
        )


@lru_cache(1024)
def _has_hidden_part(folder: str) -> bool:
    return any(is_hidden(part) for part in folder.split("/") if part not in (".", ".."))


def _find_target(link: tarfile.TarInfo, name: str) -> str:
    """Return the name of the member that a link leads to: a symbolic link is relative to its own folder."""
    folder = posixpath.dirname(name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(folder, link.linkname))


def open_tars(folder: Folder, shards: list[str], images: str, label_column: str | None = None) -> TarMembers:
    """Open tar files as one source, in the order of ``shards``, their names in ``folder``.

    ``label_column``: the extension of members that hold labels. A label is that of the images which are named like its member
    up to one of their dots. Links to members of the same archive are read. A member that is not readable, and the rest of a
    damaged tar file, is an item that cannot be read; images of other formats are logged.
    Raises UsageError where no image can be read, or there is no label.
    """
    indexes = [_index_tar(folder, shard, label_column).pack() for shard in shards]
    left_out = LeftOut.sum(index.left_out for index in indexes)
    if not any(len(index.keys) > len(index.failures) for index in indexes):
        reasons = [reason for index in indexes for reason in index.failures.values()]
        what = reasons[0] if reasons else f"no member with an image's extension ({', '.join(EXTENSIONS)}){left_out.but()}"
        raise UsageError(f"images {images!r}: {what}")
    left_out.warn(images)
    starts = np.cumsum([0, *(len(index.keys) for index in indexes)])
    keys = pa.concat_arrays([index.keys for index in indexes])
    failures = {
        int(start) + number: why
        for start, index in zip(starts, indexes, strict=False)
        for number, why in index.failures.items()
    }
    labels = None
    if label_column is not None:
        labels = pa.concat_arrays([index.labels for index in indexes])
        if labels.null_count == len(labels):
            extensions = ", ".join(sorted(set().union(*(index.extensions for index in indexes)))[:_EXTENSIONS_NAMED])
            problem = f"no member with the extension {label_column!r} is named like an image: there are {extensions}"
            raise MissingColumn(f"images {images!r}: {problem}")
    return TarMembers(
        folder,
        keys,
        labels,
        failures,
        tuple(shards),
        np.repeat(np.arange(len(shards), dtype=np.int32), np.diff(starts)),
        np.concatenate([index.offsets for index in indexes]),
        np.concatenate([index.sizes for index in indexes]),
        tuple(index.stamp for index in indexes),
        left_out=left_out.describe(),
    )


def _index_tar(folder: Folder, shard: str, label_column: str | None) -> TarIndex:
    """Index the members up to where the file is cut off or damaged, which is one more item that cannot be read."""
    index = TarIndex(shard, label_column)
    try:
        with folder.open(shard) as file:
            index.stamp = stamp_open_file(file)
            try:
                for member in _read_headers(file):
                    if member is None:
                        index.end_archive(file)
                    else:
                        index.add(member, file)
            finally:
                index.end_archive(file)
    except DecodeError as error:
        index.fail(str(error))
    except Exception as error:  # tarfile raises many kinds on damaged headers
        index.fail(f"damaged tar: {describe_error(error)}")
    return index


def _read_headers(file: BinaryIO) -> Iterator[tarfile.TarInfo | None]:
    """Read all members, and None at the end of each archive. Raises DecodeError where one ends before its end.

    tarfile could read on behind an archive's end itself, but then it would pass over damaged headers, too.
    """
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(2) == _GZIP:
        raise DecodeError("a compressed tar has no places to read at: gunzip it", "read")
    file.seek(0)
    start = 0  # of the current archive
    with tarfile.open(fileobj=cast(BinaryIO, BoundedFile(file)), mode="r:", tarinfo=PlainHeader, encoding="utf-8") as tar:
        while start < total:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                if member.size < 0 or _find_member_end(member) > total:
                    raise DecodeError("the tar file is cut off or damaged in or after its last member", "read")
                yield member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                if 0 < start == tar.offset:
                    raise DecodeError("data that are no tar archive follow the end of the archive", "read")
                raise DecodeError("the tar file is cut off or damaged: it does not end with empty blocks", "read")
            yield None
            tar.offset = start = _skip_empty_blocks(file, tar.offset, total)
            file.seek(start)


def _skip_empty_blocks(file: BinaryIO, start: int, total: int) -> int:
    """Return the place of the first block that is not empty; ``total``, the size of the file, if all are."""
    file.seek(start)
    for position in range(start, total, _MAX_HEADER_BYTES):
        if position > start + _MAX_PADDING:
            raise DecodeError(f"more than {_MAX_PADDING:,} bytes of zeros follow the end of the archive", "read")
        blocks = file.read(_MAX_HEADER_BYTES)
        if data := blocks.lstrip(b"\0"):
            return position + (len(blocks) - len(data)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    return total


def _find_member_end(member: tarfile.TarInfo) -> int:
    stored = member.size if member.isreg() and not member.issparse() else 0
    return member.offset_data + stored


class PlainHeader(tarfile.TarInfo):
    """A header of a plain file parsed only for name and size, which is faster; tarfile parses all others."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "PlainHeader":
        if len(buf) != tarfile.BLOCKSIZE or buf[156:157] != tarfile.REGTYPE or buf[124] & 0x80:
            return super().frombuf(buf, encoding, errors)
        if int(buf[148:156].strip(b" \0") or b"0", 8) != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)
        prefix, name = _cut_at_nul(buf[345:500]), _cut_at_nul(buf[:100])
        header = cls((prefix + b"/" + name if prefix else name).decode(encoding, errors))
        header.size = int(buf[124:136].strip(b" \0") or b"0", 8)
        return header


def _cut_at_nul(field: bytes | bytearray) -> bytes | bytearray:
    return field.partition(b"\0")[0]


class BoundedFile:
    """A file that limits what tarfile reads at a time: it would read headers of any size into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise DecodeError(f"a tar header of {size:,} bytes", "read")
        return self._file.read(size)
