"""Files below one folder, read safely, and a source whose keys are held in memory."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

import pyarrow as pa

from densefeat.errors import DecodeError
from densefeat.images.stream import ImageItem, fingerprint_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".svs")  # .svs: slides, a tiled TIFF
MAX_BYTES = 2**30  # of one encoded image
ENDINGS = tuple(extension.encode() for extension in EXTENSIONS)
_CHUNK = 1024  # keys turned into Python strings at a time


class Folder(Protocol):
    """Where files are read from. Names are relative, with forward slashes; one that leaves the folder is refused."""

    def read(self, name: str) -> bytes:
        """A whole file of at most ``MAX_BYTES``, or DecodeError (stage ``read``). May be called from several threads."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, or DecodeError (stage ``read``). May be called from several threads."""

    def open(self, name: str) -> BinaryIO:
        """For reading and seeking, whatever the size; DecodeError (stage ``read``)."""

    def size(self, name: str) -> int:
        """In bytes; DecodeError (stage ``read``)."""

    def path(self, name: str) -> str | None:
        """Of a file on this machine that may be read; else None, and ``read`` tells why."""

    def below(self, name: str) -> "Folder":
        """The folder that the file ``name`` lies in, links out of it not followed."""

    def find(self) -> Iterator[tuple[bytes, int | None]]:
        """All files below, in any order: name, and size where listing tells. A folder that cannot be listed ends in a slash."""


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """``root``: absolute, its own links resolved. ``follow_links``: also where they lead out of it."""

    root: str
    follow_links: bool = False

    def read(self, name: str) -> bytes:
        with self.open(name) as file, read_errors():
            check_size(os.fstat(file.fileno()).st_size)
            return file.read()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        check_size(size)
        with self.open(name) as file, read_errors():
            file.seek(offset)
            return whole(file.read(size), size)

    def open(self, name: str) -> BinaryIO:
        with read_errors():
            path = self.checked(name)
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                raise DecodeError("a folder that cannot be listed" if stat.S_ISDIR(mode) else "not a regular file", "read")
            return open(path, "rb")

    def size(self, name: str) -> int:
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def path(self, name: str) -> str | None:
        try:
            return self.checked(name)
        except (DecodeError, OSError, ValueError):
            return None

    def checked(self, name: str) -> str:
        """The path; DecodeError where it leads out of the folder."""
        check_name(name)
        path = os.path.join(self.root, name)
        if not self.follow_links and not Path(os.path.realpath(path)).is_relative_to(self.root):
            raise DecodeError("a symbolic link out of the folder", "read")
        return path

    def below(self, name: str) -> "LocalFolder":
        return LocalFolder(os.path.realpath(os.path.join(self.root, os.path.dirname(name))))

    def find(self) -> Iterator[tuple[bytes, None]]:
        root = os.fsencode(self.root)
        unlisted: list[bytes] = []
        for directory, folders, names in os.walk(
            root, onerror=lambda error: unlisted.append(error.filename), followlinks=self.follow_links
        ):
            relative = os.path.relpath(directory, root).replace(os.sep.encode(), b"/")
            prefix = b"" if relative == b"." else relative + b"/"
            yield from ((prefix + name, None) for name in names)
            if self.follow_links:
                folders[:] = [name for name in folders if not _leads_back(os.path.join(directory, name), root)]
        for directory in unlisted:
            yield os.path.relpath(directory, root).replace(os.sep.encode(), b"/") + b"/", None


@dataclass(frozen=True)
class Indexed:
    """A source whose keys, labels (None: no item has one) and known failures (by position) are all in memory."""

    folder: Folder
    names: pa.LargeBinaryArray = field(repr=False)
    labels: pa.Array | None = field(default=None, repr=False)
    failures: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def length(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    def items(self, start: int, stop: int) -> Iterator[ImageItem]:
        for first in range(start, min(stop, self.length), _CHUNK):
            last = min(first + _CHUNK, stop)
            keys = self.names[first:last].to_pylist()
            labels = [None] * len(keys) if self.labels is None else self.labels[first:last].to_pylist()
            for position, (key, label) in enumerate(zip(map(os.fsdecode, keys), labels, strict=True), first):
                reason = self.failures.get(position)
                if reason is not None:
                    yield failing(key, label, reason)
                else:
                    yield self.item(position, key, label)

    def item(self, position: int, key: str, label: str | None) -> ImageItem:
        """The one at a position that has no known failure."""
        raise NotImplementedError

    def keys(self) -> pa.LargeBinaryArray:
        return self.names

    def fingerprint(self) -> str:
        return fingerprint_of(self.names, self.labels)


class Files(Indexed):
    """An :class:`Indexed` source of files whose names are their keys."""

    def item(self, position: int, key: str, label: str | None) -> ImageItem:  # noqa: ARG002  (of the superclass)
        folder = self.folder
        return ImageItem(key, label, partial(folder.read, key), partial(folder.path, key), partial(folder.open, key))


def _leads_back(folder: bytes, root: bytes) -> bool:
    """Whether ``folder``, below ``root``, is a link to one of the folders on the way to it: following it would never end."""
    if not os.path.islink(folder):
        return False
    way = folder
    while way != root:
        way = os.path.dirname(way)
        if os.path.samefile(folder, way):
            return True
    return False


def failing(key: str, label: str | None, reason: str) -> ImageItem:
    """An item that is known not to be readable."""
    return ImageItem(key, label, partial(_fail, reason))


def _fail(reason: str) -> NoReturn:
    raise DecodeError(reason, "read")


def given(data: bytes) -> Callable[[], bytes]:
    """A ``read`` for bytes at hand, that pickles."""
    return partial(bytes, data)


def check_name(name: str) -> None:
    """DecodeError for a name that is no text, or leaves its folder."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DecodeError("the name is not valid UTF-8", "read") from None
    if not name:
        raise DecodeError("no path", "read")
    if escapes(name):
        raise DecodeError("outside of the folder", "read")


def escapes(name: str) -> bool:
    """Whether a path is absolute, an address, or goes up; on paper: links are seen when it is opened."""
    return os.path.isabs(name) or name.startswith("/") or "://" in name or ".." in name.replace(os.sep, "/").split("/")


def check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise DecodeError(f"{size:,} bytes are more than the limit of {MAX_BYTES:,}", "read")


def whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise DecodeError(f"{len(data):,} bytes where {size:,} were expected", "read")
    return data


@contextmanager
def read_errors() -> Iterator[None]:
    """Whatever a file system raises as DecodeError (stage ``read``): the kinds of error differ from one to the next."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(reason_of(error), "read") from error


def reason_of(error: Exception) -> str:
    """One line on an error of someone else's."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]
