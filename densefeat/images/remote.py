"""Folders on any file system that fsspec opens."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

from densefeat.errors import UsageError
from densefeat.images.files import MAX_BYTES, check_name, check_size, read_errors, reason_of, whole

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # of densefeat, by protocol


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """``address``: says which file system; ``root``: the folder's name there. ``listed``: listing has bounded all sizes."""

    address: str
    root: str
    listed: bool = False

    @property
    def _fs(self) -> "AbstractFileSystem":
        return file_system(self.address)[0]

    def _at(self, name: str) -> str:
        check_name(name)
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        path = self._at(name)
        with read_errors():
            if self.listed:
                return self._fs.cat_file(path)
            size = self._fs.info(path).get("size")
            check_size(size or 0)
            if size is not None:
                return self._fs.cat_file(path)
            with self._fs.open(path, "rb") as file:  # a server that does not tell: read no more than is allowed
                data = file.read(MAX_BYTES + 1)
            check_size(len(data))
            return data

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        path = self._at(name)
        check_size(size)
        with read_errors():
            return whole(self._fs.cat_file(path, start=offset, end=offset + size) if size else b"", size)

    def open(self, name: str) -> BinaryIO:
        path = self._at(name)
        with read_errors():
            return self._fs.open(path, "rb")

    def size(self, name: str) -> int:
        path = self._at(name)
        with read_errors():
            return int(self._fs.info(path)["size"])

    def path(self, name: str) -> None:  # noqa: ARG002  (of the protocol)
        return None

    def below(self, name: str) -> "RemoteFolder":
        return RemoteFolder(self.address, "/".join([self.root, *name.split("/")[:-1]]))

    def find(self) -> Iterator[tuple[bytes, int | None]]:
        for path, info in self._fs.find(self.root, detail=True).items():
            if not path.endswith("/"):  # object stores have empty objects that stand for folders
                yield os.fsencode(path[len(self.root) :].lstrip("/")), info.get("size")


def file_system(address: str) -> tuple["AbstractFileSystem", str]:
    """The file system of an address, and the name that it has there. UsageError where it needs a package or is unknown."""
    return _file_system(address, os.getpid())


@lru_cache(64)
def _file_system(address: str, process: int) -> tuple["AbstractFileSystem", str]:  # noqa: ARG001  (connections do not fork)
    from fsspec.core import url_to_fs

    protocol = address.partition("://")[0]
    try:
        return url_to_fs(address)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        hint = f"pip install 'densefeat[{extra}]'" if extra else reason_of(error)
        raise UsageError(f"images {address!r}: {protocol}:// needs a package that is not installed: {hint}") from error
    except Exception as error:
        raise UsageError(f"images {address!r}: {reason_of(error)}") from error
