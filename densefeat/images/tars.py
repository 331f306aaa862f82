"""Tar files with images as members, as WebDataset writes them, indexed by their headers and read in place."""

import os
import tarfile
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from densefeat.base import describe_error
from densefeat.errors import DecodeError, UsageError
from densefeat.images.files import EXTENSIONS
from densefeat.images.folders import Folder, leaves_folder
from densefeat.images.stamps import Stamps, stamp_open_file
from densefeat.images.stream import ImageItem, IndexedSource, printable_key

_MAX_LABEL_BYTES = 1000
_MAX_HEADER_BYTES = 2**20  # long names and attributes
_GZIP = b"\x1f\x8b"


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


@dataclass
class TarIndex:
    """The images of one tar file, by its headers. ``failures``: why an image cannot be read, by its number in the file."""

    shard: str
    keys: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)  # by sample
    not_labels: dict[str, str] = field(default_factory=dict)  # why, by sample
    extensions: set[str] = field(default_factory=set)
    stamp: str | None = None

    def add(self, key: str, sample: str = "", offset: int = 0, size: int = 0, failure: str | None = None) -> None:
        if failure is not None:
            self.failures[len(self.keys)] = failure
        self.keys.append(key)
        self.samples.append(sample)
        self.offsets.append(offset)
        self.sizes.append(size)

    def pack(self) -> "PackedIndex":
        if self.not_labels:
            reasons = ((place, self.not_labels.get(sample)) for place, sample in enumerate(self.samples))
            self.failures |= {place: reason for place, reason in reasons if reason and place not in self.failures}
        return PackedIndex(
            pa.array(map(os.fsencode, self.keys), pa.large_binary()),
            pa.array(map(self.labels.get, self.samples), pa.large_string()),
            np.array(self.offsets, np.int64),
            np.array(self.sizes, np.int64),
            self.failures,
            bool(self.labels),
            self.extensions,
            self.stamp,
        )


@dataclass(frozen=True)
class PackedIndex:
    """A :class:`TarIndex` in compact arrays, since a job may have thousands of them."""

    keys: pa.LargeBinaryArray
    labels: pa.LargeStringArray
    offsets: np.ndarray
    sizes: np.ndarray
    failures: dict[int, str]
    labelled: bool
    extensions: set[str]
    stamp: str | None


def open_tars(folder: Folder, shards: list[str], images: str, label_column: str | None = None) -> TarMembers:
    """Open tar files as one source, in the order of ``shards``, their names in ``folder``.

    ``label_column``: the extension of members that hold the label of their sample; a sample is all members with the same name
    up to its first dot. A member that is not readable, and the rest of a damaged tar file, is an item that cannot be read.
    Raises UsageError where no image can be read, or there is no label.
    """
    indexes = [_index_tar(folder, shard, label_column).pack() for shard in shards]
    if not any(len(index.keys) > len(index.failures) for index in indexes):
        reasons = [reason for index in indexes for reason in index.failures.values()]
        what = reasons[0] if reasons else f"no member with an image's extension ({', '.join(EXTENSIONS)})"
        raise UsageError(f"images {images!r}: {what}")
    if label_column is not None and not any(index.labelled for index in indexes):
        extensions = ", ".join(sorted(set().union(*(index.extensions for index in indexes)))[:20])
        raise UsageError(f"images {images!r}: no member with the extension {label_column!r}: there are {extensions}")
    starts = np.cumsum([0, *(len(index.keys) for index in indexes)])
    return TarMembers(
        folder,
        pa.concat_arrays([index.keys for index in indexes]),
        None if label_column is None else pa.concat_arrays([index.labels for index in indexes]),
        {
            int(start) + place: why
            for start, index in zip(starts, indexes, strict=False)
            for place, why in index.failures.items()
        },
        tuple(shards),
        np.repeat(np.arange(len(shards), dtype=np.int32), np.diff(starts)),
        np.concatenate([index.offsets for index in indexes]),
        np.concatenate([index.sizes for index in indexes]),
        tuple(index.stamp for index in indexes),
    )


def _index_tar(folder: Folder, shard: str, label_column: str | None) -> TarIndex:
    """Index the members up to where the file is cut off or damaged, which is one more item that cannot be read."""
    index = TarIndex(shard)
    try:
        with folder.open(shard) as file:
            index.stamp = stamp_open_file(file)
            _read_headers(index, file, label_column)
    except DecodeError as error:
        index.add(shard, failure=str(error))
    except Exception as error:  # tarfile raises many kinds on damaged headers
        index.add(shard, failure=f"damaged tar: {describe_error(error)}")
    return index


def _read_headers(index: TarIndex, file: BinaryIO, label_column: str | None) -> None:
    """Index all members; DecodeError where the tar file ends before its end."""
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(2) == _GZIP:
        raise DecodeError("a compressed tar has no places to read at: gunzip it", "read")
    file.seek(0)
    seen: dict[str, int] = {}
    with tarfile.open(fileobj=cast(BinaryIO, BoundedFile(file)), mode="r:", tarinfo=PlainHeader, encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            if member.size < 0 or _find_member_end(member) > total:
                raise DecodeError("the tar file is cut off or damaged in or after its last member", "read")
            _index_member(index, member, seen)
            if member.isreg():
                _index_label(index, member, label_column, file)
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DecodeError("the tar file is cut off or damaged: it does not end with empty blocks", "read")


def _find_member_end(member: tarfile.TarInfo) -> int:
    stored = member.size if member.isreg() and not member.issparse() else 0
    return member.offset_data + stored


def _index_member(index: TarIndex, member: tarfile.TarInfo, seen: dict[str, int]) -> None:
    """Add a member that is an image, with its failure where it cannot be read."""
    if member.isdir() or not member.name.lower().endswith(EXTENSIONS):
        return
    name = member.name.removeprefix("./")
    key = f"{index.shard}/{name}"
    failure = None
    if leaves_folder(name):
        failure = "a member's name that leads out of the tar file"
    elif not member.isreg() or member.issparse():
        failure = "not a regular member of the tar file"
    elif key in seen:
        failure = f"repeated: the same as member {seen[key]} of the images in this tar file"
    elif printable_key(name) != name:
        failure = "the name is not valid UTF-8"
    seen.setdefault(key, len(index.keys))
    index.add(key, _split_extension(member.name)[0], member.offset_data, member.size, failure)


def _split_extension(name: str) -> tuple[str, str]:
    """Split a name into the sample's and the extension, which begins at the first dot of its last part."""
    head, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return head + slash + stem, extension


def _index_label(index: TarIndex, member: tarfile.TarInfo, label_column: str | None, file: BinaryIO) -> None:
    """Note a member's extension, and its content if it is a label."""
    sample, extension = _split_extension(member.name)
    if len(index.extensions) < 20:
        index.extensions.add(extension)
    if label_column is None or extension != label_column.lstrip("."):
        return
    if member.size > _MAX_LABEL_BYTES:
        index.not_labels[sample] = f"its label, {printable_key(member.name)!r}, has more than {_MAX_LABEL_BYTES:,} bytes"
        return
    file.seek(member.offset_data)
    index.labels[sample] = file.read(member.size).decode("utf-8", "backslashreplace").strip()


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
