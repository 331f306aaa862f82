"""What the user calls an input: a path, or an address that fsspec knows; with globs and braces."""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from densefeat.errors import UsageError
from densefeat.images.files import Folder, LocalFolder, reason_of
from densefeat.images.remote import RemoteFolder, file_system

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_OPEN = re.compile(rf"[*?\[]|{_BRACES.pattern}")
_MAX_FILES = 100_000  # that braces may name
_WEB = ("http", "https")


def is_remote(place: str) -> bool:
    """Whether what the user names is read over a network: an address such as ``s3://…``, or ``hf:NAME:SPLIT``."""
    return "://" in place or place.startswith("hf:")


@dataclass(frozen=True)
class Address:
    """``text``: as given; ``path``: as ``fs`` names it, without a slash at its end."""

    text: str
    fs: "AbstractFileSystem"
    path: str

    @property
    def local(self) -> bool:
        return "file" in _protocols(self.fs)

    @property
    def on_the_web(self) -> bool:
        return self.text.partition("://")[0] in _WEB

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def above(self) -> "Address":
        """The folder that it lies in."""
        protocol, colon, _ = self.text.partition("://")
        text = self.text.rpartition("/")[0]
        text = text if not colon or "://" in text else protocol + colon
        return replace(self, text=text, path=self.path.rpartition("/")[0])

    def spellings(self) -> list[str]:
        """Ways to write a folder in full, with a slash at the end."""
        if self.local:
            names = [self.path, os.path.realpath(self.path or "/").replace(os.sep, "/")]
        else:
            names = [self.text, self.fs.unstrip_protocol(self.path), self.path]
        return list(dict.fromkeys(name if name.endswith("/") else name + "/" for name in names))

    def exists(self) -> bool:
        return self._asked(self.fs.exists, self.path)

    def is_folder(self) -> bool:
        return not self.on_the_web and self._asked(self.fs.isdir, self.path)

    def has(self, name: str) -> bool:
        """Whether a folder holds a file of this name."""
        return self._asked(self.fs.isfile, f"{self.path}/{name}")

    def folder(self, path: str | None = None, follow_links: bool = False, listed: bool = False) -> Folder:
        """For reading below ``path``, by default this address itself."""
        path = self.path if path is None else path
        if self.local:
            return LocalFolder(os.path.realpath(path or "/"), follow_links)
        return RemoteFolder(self.text, path, listed)

    def files(self) -> list[str]:
        """The paths that globs and braces stand for, in order. UsageError where there are none, or one in braces is missing."""
        if self.exists():
            return [self.path]
        names = self._names()
        exact = [name for name in names if not _has_glob(name)]
        with ThreadPoolExecutor(16) as pool:
            for path, found in zip(exact, pool.map(partial(self._asked, self.fs.isfile), exact), strict=True):
                if not found:
                    raise UsageError(f"images {self.text!r}: no such file" + (f": {path}" if len(names) > 1 else ""))
        paths = list(dict.fromkeys(path for name in names for path in (self._globbed(name) if _has_glob(name) else [name])))
        if not paths:
            raise UsageError(f"images {self.text!r}: no such file")
        return paths

    def fixed_folder(self) -> str:
        """The folder above whatever a glob or braces leave open: names relative to it stay when more files come."""
        opened = None if self.exists() else _OPEN.search(self.path)
        return self.path[: opened.start() if opened else None].rpartition("/")[0]

    def _globbed(self, name: str) -> list[str]:
        if self.on_the_web:
            raise UsageError(f"images {self.text!r}: web servers do not list files: use {{000..099}}, not a glob")
        found = self._asked(partial(self.fs.glob, detail=True), name)
        return sorted(path for path, info in found.items() if info["type"] != "directory")

    def _names(self) -> list[str]:
        names = list(islice(_expand_braces(self.path), _MAX_FILES + 1))
        if len(names) > _MAX_FILES:
            raise UsageError(f"images {self.text!r}: braces for more than {_MAX_FILES:,} files")
        return names

    def _asked(self, question, *arguments):
        """An answer of the file system, whose many errors become one."""
        try:
            return question(*arguments)
        except Exception as error:
            raise UsageError(f"images {self.text!r}: {reason_of(error)}") from error


def address_of(text: str | os.PathLike[str]) -> Address:
    """UsageError for a protocol that is unknown, or whose package is missing."""
    text = os.fspath(text)
    if "://" not in text:
        return _local_address(text, text)
    fs, path = file_system(text)
    if "file" in _protocols(fs):
        return _local_address(text, path)
    if text.partition("://")[0] in _WEB and "?" in text:
        raise UsageError(f"images {text!r}: an address with a query would be part of every key: leave it out, or download")
    return Address(text, fs, path.rstrip("/"))


def _local_address(text: str, path: str) -> Address:
    from fsspec.implementations.local import LocalFileSystem

    absolute = os.path.abspath(path).replace(os.sep, "/")
    return Address(text, LocalFileSystem(), absolute.rstrip("/"))


def _protocols(fs: "AbstractFileSystem") -> Iterable[str]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol


def _has_glob(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def _expand_braces(text: str) -> Iterable[str]:
    """``{000..099}`` counts, keeping leading zeros, and ``{a,b}`` lists: every combination, the last brace fastest."""
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    first, last, choices = found.groups()
    if choices is None:
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        middles: Iterable[str] = (f"{number:0{width}}" for number in range(int(first), int(last) + 1))
    else:
        middles = choices.split(",")
    for middle in middles:
        for end in _expand_braces(text[found.end() :]):
            yield text[: found.start()] + middle + end
