"""The state of the files behind a source, by which a later look at them notices that they have changed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

_READERS = 8  # threads: on a network file system each look at a file waits for an answer
_CHUNK = 4096  # files that a thread looks at before the next takes its turn
# what file systems call the version of a file, the most reliable first; the names are those of fsspec's packages
_VERSIONS = ("etag", "blob_id", "md5hash", "generation", "sha", "mtime", "lastmodified", "last_modified", "modified", "created")


@dataclass(frozen=True)
class Stamps:
    """The files that a source is read from, and the state in which each was found.

    ``files``: their names, string ``(F,)``. ``stamps``: size and version of each as text, null where they are not known; they
    are only compared. ``owners``: int64, for each position the file that it is read from; None: position ``i`` is file ``i``.
    """

    files: pa.Array
    stamps: pa.Array
    owners: np.ndarray | None = None

    def spread(self, files: np.ndarray) -> np.ndarray:
        """Turn a mask of files into one of positions."""
        return files if self.owners is None else files[self.owners]

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Turn a mask of positions into one of the files that any of them is read from."""
        if self.owners is None:
            return positions
        return np.bincount(self.owners[positions], minlength=len(self.files)) > 0


def stamp_status(status: os.stat_result) -> str:
    """Stamp a file on this machine: its size, and the time of its last change in nanoseconds."""
    return f"{status.st_size} {status.st_mtime_ns}"


def stamp_info(info: Mapping[str, Any]) -> str | None:
    """Stamp a file by its entry in a listing of fsspec; None where the entry has neither a size nor a version."""
    facts = {name.lower(): value for name, value in info.items() if value is not None}
    version = next((facts[name] for name in _VERSIONS if name in facts), None)
    if version is None and "size" not in facts:
        return None
    return f"{facts.get('size', '?')} {'?' if version is None else version}"


def stamp_open_file(file: BinaryIO) -> str | None:
    """Stamp an open file, without a request to its file system; None where nothing is known of it."""
    try:
        return stamp_status(os.fstat(file.fileno()))
    except (AttributeError, OSError):  # not a file of this machine
        pass
    # the property `details` would send a request where opening the file did not need one
    info = getattr(file, "_details", None) or {name: getattr(file, name, None) for name in ("size", "modified")}
    return stamp_info(info)


def stamp_files(stamp: Callable[[bytes], str | None], names: pa.Array) -> pa.Array:
    """Stamp files by their names (large_binary ``(F,)``), several at a time: string ``(F,)``."""

    def stamp_chunk(start: int) -> pa.Array:
        return pa.array([stamp(name) for name in names[start : start + _CHUNK].to_pylist()], pa.large_string())

    with ThreadPoolExecutor(_READERS) as pool:
        return pa.concat_arrays([pa.array([], pa.large_string()), *pool.map(stamp_chunk, range(0, len(names), _CHUNK))])


def join_stamps(stamps: Iterable[tuple[bytes, str | None]]) -> str | None:
    """Make one stamp of those of many files, in any order; None where none is known."""
    entries = sorted((name, stamp) for name, stamp in stamps if stamp is not None)
    return hashlib.sha256(repr(entries).encode()).hexdigest() if entries else None
