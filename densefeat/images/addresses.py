"""Names of inputs: paths, and addresses that fsspec opens, with globs and braces."""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from densefeat.base import describe_error
from densefeat.errors import UsageError
from densefeat.images.folders import Folder, LocalFolder, RemoteFolder, file_system, is_hidden

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_PATTERN = re.compile(rf"[*?\[]|{_BRACES.pattern}")
_MAX_FILES = 100_000  # named by braces
_WEB = ("http", "https")


def is_remote(place: str) -> bool:
    """Check whether an input is read over a network: an address such as ``s3://…``, or ``hf:NAME:SPLIT``."""
    return "://" in place or place.startswith("hf:")


@dataclass(frozen=True)
class Address:
    """The name of an input. ``text``: as the user wrote it; ``path``: on the file system ``fs``, without a slash at the end."""

    text: str
    fs: "AbstractFileSystem"
    path: str

    @property
    def local(self) -> bool:
        return "file" in _list_protocols(self.fs)

    @property
    def on_the_web(self) -> bool:
        return self.text.partition("://")[0] in _WEB

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def parent(self) -> "Address":
        """Return the folder that contains it."""
        protocol, colon, _ = self.text.partition("://")
        text = self.text.rpartition("/")[0]
        text = text if not colon or "://" in text else protocol + colon
        return replace(self, text=text, path=self.path.rpartition("/")[0])

    def spellings(self) -> list[str]:
        """List the ways to write a folder in full, with a slash at the end."""
        if self.local:
            names = [self.path, os.path.realpath(self.path or "/").replace(os.sep, "/")]
        else:
            names = [self.text, self.fs.unstrip_protocol(self.path), self.path]
        return list(dict.fromkeys(name if name.endswith("/") else name + "/" for name in names))

    def exists(self) -> bool:
        return self._ask(self.fs.exists, self.path)

    def is_folder(self) -> bool:
        return not self.on_the_web and self._ask(self.fs.isdir, self.path)

    def has(self, name: str) -> bool:
        """Check whether a folder holds a file of this name."""
        return self._ask(self.fs.isfile, f"{self.path}/{name}")

    def list_names(self) -> list[str]:
        """List the names of all files and folders in a folder, in any order."""
        return [path.rstrip("/").rpartition("/")[2] for path in self._ask(partial(self.fs.ls, detail=False), self.path or "/")]

    def folder(self, path: str | None = None, follow_links: bool = False, listed: bool = False) -> Folder:
        """Open the folder ``path``, by default this address."""
        path = self.path if path is None else path
        if self.local:
            return LocalFolder(os.path.realpath(path or "/"), follow_links)
        return RemoteFolder(self.text, path, listed)

    def files(self) -> list[str]:
        """List the paths that globs and braces match, in order; as in a shell a glob passes over hidden ones.

        Raises UsageError for none, or a missing file in braces.
        """
        if self.exists():
            return [self.path]
        names = self._expand()
        exact = [name for name in names if not _has_glob(name)]
        with ThreadPoolExecutor(16) as pool:
            for path, exists in zip(exact, pool.map(partial(self._ask, self.fs.isfile), exact), strict=True):
                if not exists:
                    raise UsageError(f"images {self.text!r}: no such file" + (f": {path}" if len(names) > 1 else ""))
        paths = list(dict.fromkeys(path for name in names for path in (self._glob(name) if _has_glob(name) else [name])))
        if not paths:
            raise UsageError(f"images {self.text!r}: no such file")
        return paths

    def suggest_folder(self) -> str | None:
        """Return the folder of a glob as the user would write it, None for another name."""
        pattern = None if self.exists() else _PATTERN.search(self.text)
        return None if pattern is None else self.text[: pattern.start()].rpartition("/")[0] or "."

    def fixed_folder(self) -> str:
        """Return the folder above the first glob or brace: names relative to it stay the same when files are added."""
        return self.path.rpartition("/")[0] if self.exists() else _get_fixed_folder(self.path)

    def _glob(self, name: str) -> list[str]:
        if self.on_the_web:
            raise UsageError(f"images {self.text!r}: web servers do not list files: use {{000..099}}, not a glob")
        matches = self._ask(partial(self.fs.glob, detail=True), name)
        paths = sorted(path for path, info in matches.items() if info["type"] != "directory")
        fixed = len(_get_fixed_folder(name))
        return [path for path in paths if not any(map(is_hidden, path[fixed:].split("/")))] or paths

    def _expand(self) -> list[str]:
        names = list(islice(_expand_braces(self.path), _MAX_FILES + 1))
        if len(names) > _MAX_FILES:
            raise UsageError(f"images {self.text!r}: braces for more than {_MAX_FILES:,} files")
        return names

    def _ask(self, question, *arguments):
        """Call a function of the file system; raise its errors, which are of many kinds, as UsageError."""
        try:
            return question(*arguments)
        except Exception as error:
            raise UsageError(f"images {self.text!r}: {describe_error(error)}") from error


def _get_fixed_folder(path: str) -> str:
    pattern = _PATTERN.search(path)
    return path[: pattern.start() if pattern else None].rpartition("/")[0]


def parse_address(text: str | os.PathLike[str]) -> Address:
    """Parse what the user has named. Raises UsageError for an unknown protocol, or one whose package is missing."""
    text = os.fspath(text)
    if "://" not in text:
        return _make_local_address(text, text)
    fs, path = file_system(text)
    if "file" in _list_protocols(fs):
        return _make_local_address(text, path)
    if text.partition("://")[0] in _WEB and "?" in text:
        raise UsageError(f"images {text!r}: an address with a query would be part of every key: leave it out, or download")
    return Address(text, fs, path.rstrip("/"))


def _make_local_address(text: str, path: str) -> Address:
    from fsspec.implementations.local import LocalFileSystem

    absolute = os.path.abspath(path).replace(os.sep, "/")
    return Address(text, LocalFileSystem(), absolute.rstrip("/"))


def _list_protocols(fs: "AbstractFileSystem") -> Iterable[str]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol


def _has_glob(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def _expand_braces(text: str) -> Iterable[str]:
    """Expand ``{000..099}``, which keeps leading zeros, and ``{a,b}`` to every combination; the last brace changes fastest."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    first, last, choices = match.groups()
    if choices is None:
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        middles: Iterable[str] = (f"{number:0{width}}" for number in range(int(first), int(last) + 1))
    else:
        middles = choices.split(",")
    for middle in middles:
        for end in _expand_braces(text[match.end() :]):
            yield text[: match.start()] + middle + end
