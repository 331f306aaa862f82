"""Folders of files, on this machine or on any file system that fsspec opens, read without leaving them."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from densefeat.base import describe_error
from densefeat.errors import DecodeError, UsageError
from densefeat.images.memory import MEMORY
from densefeat.images.stamps import stamp_info, stamp_status

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

MAX_BYTES = 2**30  # of one encoded image
# folders that systems, drives and unpackers put beside the user's own; in lower case
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "system volume information"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # densefeat's extra that a protocol needs


class Found(NamedTuple):
    """A file of a listing, or a folder that was not entered: its name then has a slash at the end.

    ``size``: in bytes, where the listing has it; ``problem``: why a folder's files are missing from the listing; ``hidden``:
    whether the file is no image of the user's, or the folder has none, see :func:`is_hidden`; ``stamp``: the file's state,
    where the listing has it.
    """

    name: bytes
    size: int | None = None
    problem: str | None = None
    hidden: bool = False
    stamp: str | None = None


class Folder(Protocol):
    """A folder that files are read from. Names are relative, with forward slashes; a name that leaves the folder is refused."""

    def read(self, name: str) -> bytes:
        """Read a whole file of at most ``MAX_BYTES``. Raises DecodeError (stage ``read``). Safe in threads."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Read ``size`` bytes from ``offset``. Raises DecodeError (stage ``read``). Safe in threads."""

    def open(self, name: str) -> BinaryIO:
        """Open a file of any size for reading and seeking. Raises DecodeError (stage ``read``)."""

    def size(self, name: str) -> int:
        """Return a file's size in bytes. Raises DecodeError (stage ``read``)."""

    def path(self, name: str) -> str | None:
        """Return the path of a file on this machine; None where there is none that may be read: ``read`` then says why."""

    def below(self, name: str) -> "Folder":
        """Return the folder that holds the file ``name``; links out of it are not followed."""

    def stamp(self, name: bytes) -> str | None:
        """Say in which state a file is, by what its file system knows without a request; None where that is nothing."""

    def find(self) -> Iterator[Found]:
        """List all files below, in any order, and the folders that are not entered. Raises errors of many kinds."""


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder on this machine. ``root``: absolute, its own links resolved; ``follow_links``: also links that leave it."""

    root: str
    follow_links: bool = False

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return _read_whole(file)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        with self.open(name) as file, _read_errors(), MEMORY.hold():
            _claim_bytes(size)
            file.seek(offset)
            return _check_length(file.read(size), size)

    def open(self, name: str) -> BinaryIO:
        with _read_errors():
            path = self._check(name)
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                raise DecodeError("a folder that cannot be listed" if stat.S_ISDIR(mode) else "not a regular file", "read")
            return open(path, "rb")

    def size(self, name: str) -> int:
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def path(self, name: str) -> str | None:
        try:
            return self._check(name)
        except (DecodeError, OSError, ValueError):
            return None

    def _check(self, name: str) -> str:
        """Return the path of a file. Raises DecodeError where it leads out of the folder."""
        _check_name(name)
        path = os.path.join(self.root, name)
        if not self.follow_links and not Path(os.path.realpath(path)).is_relative_to(self.root):
            raise DecodeError("a symbolic link out of the folder", "read")
        return path

    def below(self, name: str) -> "LocalFolder":
        return LocalFolder(os.path.realpath(os.path.join(self.root, os.path.dirname(name))))

    def stamp(self, name: bytes) -> str | None:
        try:
            return stamp_status(os.stat(os.path.join(os.fsencode(self.root), name)))
        except (OSError, ValueError):  # reading the file says why
            return None

    def find(self) -> Iterator[Found]:
        root = os.fsencode(self.root)
        folders = [b""]  # names with a slash at the end
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(os.path.join(root, folder[:-1])) as listing:
                    entries = list(listing)
            except OSError:
                if not folder:
                    raise
                yield Found(folder, problem="a folder that cannot be listed")
                continue
            for entry in entries:
                name = folder + entry.name
                if not _is_folder(entry):
                    problem = "a symbolic link to nothing" if b"." not in entry.name and _is_dangling(entry) else None
                    yield Found(name, None, problem, is_hidden(entry.name))
                elif is_hidden(entry.name):
                    yield Found(name + b"/", hidden=True)
                elif not entry.is_symlink():
                    folders.append(name + b"/")
                elif self.follow_links:
                    if not _is_loop(entry.path, root):
                        folders.append(name + b"/")
                elif not self._lists(os.path.realpath(entry.path)):
                    yield Found(name + b"/", problem="a linked folder: --follow-links reads it")

    def _lists(self, folder: bytes) -> bool:
        """Check whether ``find`` enters a folder, given without links in its path."""
        path = Path(os.fsdecode(folder))
        return path.is_relative_to(self.root) and not any(map(is_hidden, path.relative_to(self.root).parts))


def _is_folder(entry: "os.DirEntry[bytes]") -> bool:
    """Check for a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # such as links in a circle
        return False


def _is_dangling(entry: "os.DirEntry[bytes]") -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _is_loop(folder: bytes, root: bytes) -> bool:
    """Check whether the link ``folder``, below ``root``, leads to a folder that contains it: following it would never end."""
    ancestor = folder
    while ancestor != root:
        ancestor = os.path.dirname(ancestor)
        if os.path.samefile(folder, ancestor):
            return True
    return False


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder on another file system.

    ``address``: a name that determines the file system; ``root``: the folder's path there; ``listed``: all files were listed,
    and those that are too large are known.
    """

    address: str
    root: str
    listed: bool = False

    @property
    def _fs(self) -> "AbstractFileSystem":
        return file_system(self.address)[0]

    def _check(self, name: str) -> str:
        _check_name(name)
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        path = self._check(name)
        with _read_errors():
            if self.listed:
                return self._fs.cat_file(path)
            size = self._fs.info(path).get("size")
            with MEMORY.hold():
                _claim_bytes(size or 0)
                if size is not None:
                    return self._fs.cat_file(path)
                with self._fs.open(path, "rb") as file:  # without a size: read no more than is allowed
                    data = file.read(MAX_BYTES + 1)
                _check_byte_count(len(data))
                return data

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        path = self._check(name)
        with _read_errors(), MEMORY.hold():
            _claim_bytes(size)
            return _check_length(self._fs.cat_file(path, start=offset, end=offset + size) if size else b"", size)

    def open(self, name: str) -> BinaryIO:
        path = self._check(name)
        with _read_errors():
            return self._fs.open(path, "rb")

    def size(self, name: str) -> int:
        path = self._check(name)
        with _read_errors():
            return int(self._fs.info(path)["size"])

    def path(self, name: str) -> None:  # noqa: ARG002  (of the protocol)
        return None

    def below(self, name: str) -> "RemoteFolder":
        return RemoteFolder(self.address, "/".join([self.root, *name.split("/")[:-1]]))

    def stamp(self, name: bytes) -> None:  # noqa: ARG002  (of the protocol)
        return None

    def find(self) -> Iterator[Found]:
        for path, info in self._fs.find(self.root, detail=True).items():
            if path.endswith("/"):  # in object stores an empty object may stand for a folder
                continue
            name = path[len(self.root) :].lstrip("/")
            parts = name.split("/")
            hidden = next((place for place, part in enumerate(parts, 1) if is_hidden(part)), None)
            if hidden is None or hidden == len(parts):
                yield Found(os.fsencode(name), info.get("size"), hidden=hidden is not None, stamp=stamp_info(info))
            else:
                yield Found(os.fsencode("/".join(parts[:hidden]) + "/"), hidden=True)


def file_system(address: str) -> tuple["AbstractFileSystem", str]:
    """Return the file system of an address, and its path there. Raises UsageError for an unknown one or a missing package."""
    return _open_file_system_once(address, os.getpid())


@lru_cache(64)
def _open_file_system_once(address: str, process: int) -> tuple["AbstractFileSystem", str]:  # noqa: ARG001  (a forked process needs connections of its own)
    from fsspec.core import url_to_fs

    protocol = address.partition("://")[0]
    try:
        return url_to_fs(address)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        hint = f"pip install 'densefeat[{extra}]'" if extra else describe_error(error)
        raise UsageError(f"images {address!r}: {protocol}:// needs a package that is not installed: {hint}") from error
    except Exception as error:
        raise UsageError(f"images {address!r}: {describe_error(error)}") from error


def _check_name(name: str) -> None:
    """Raise DecodeError for a name that is not UTF-8, is empty or leaves its folder."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DecodeError("the name is not valid UTF-8", "read") from None
    if not name:
        raise DecodeError("no path", "read")
    if leaves_folder(name):
        raise DecodeError("outside of the folder", "read")


def is_hidden(name: str | bytes) -> bool:
    """Check by its own name whether a file or folder is not the user's: it begins with a dot, or a system made it.

    Hidden folders hold no images and are no classes: thumbnails, checkpoints of notebooks, bins, attributes of files.
    """
    text = name if isinstance(name, str) else name.decode("latin-1")  # faster than UTF-8, and the same for these names
    return text.startswith(".") or text.lower() in _SYSTEM_FOLDERS


def leaves_folder(name: str) -> bool:
    """Check by its text whether a path is absolute, an address, or goes up; links are checked when a file is opened."""
    return os.path.isabs(name) or name.startswith("/") or "://" in name or ".." in name.replace(os.sep, "/").split("/")


def read_file(path: str | Path) -> bytes:
    """Read an encoded image from a file that the user named. Raises DecodeError (stage ``read``, or ``memory``)."""
    with _read_errors(), open(path, "rb") as file:
        return _read_whole(file)


def _read_whole(file: BinaryIO) -> bytes:
    with _read_errors(), MEMORY.hold():
        _claim_bytes(os.fstat(file.fileno()).st_size)
        return file.read()


def _claim_bytes(size: int) -> None:
    """Claim the memory for an encoded image. Raises DecodeError for one that is too large."""
    _check_byte_count(size)
    MEMORY.claim(size, f"{size:,} bytes")


def _check_byte_count(size: int) -> None:
    """Raise DecodeError where a file is too large for an encoded image."""
    if size > MAX_BYTES:
        raise DecodeError(f"{size:,} bytes are more than the limit of {MAX_BYTES:,}", "read")


def _check_length(data: bytes, size: int) -> bytes:
    """Return ``data``. Raises DecodeError where it is not ``size`` bytes long."""
    if len(data) != size:
        raise DecodeError(f"{len(data):,} bytes where {size:,} were expected", "read")
    return data


@contextmanager
def _read_errors() -> Iterator[None]:
    """Raise any error of a file system, which differ from one to the next, as DecodeError (stage ``read``)."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(describe_error(error), "read") from error
