"""Files and folders that appear whole or not at all, and locks that let one process write at a time."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from densefeat.base.full_disk import find_full_disk
from densefeat.base.ownership import Recognizer, has_kind, refuse_stranger
from densefeat.errors import OutputError, UsageError

# s3://bucket, also as a Path, which has one slash of the two; a single letter is a drive
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+:/")
_MAX_NAME_BYTES = 255  # of one part of a path, on nearly all file systems


@contextmanager
def atomic_file(path: Path, is_ours: Recognizer | None = None) -> Iterator[Path]:
    """Yield a hidden file to write to; at the end it is synced and replaces ``path``, after an error it is removed.

    ``is_ours``: whether a file that is there may be replaced; None: ``path`` is in a folder that is known to be densefeat's.
    Raises OutputError, before any work, where the file cannot be created, and where the disk is full; UsageError, before the
    work and again at its end, where a symbolic link or somebody else's file is in the way.
    """
    beside = _create_beside(path, is_ours)
    try:
        with _full_disk_errors(path):
            yield beside
        with output_errors(path):
            os.chmod(beside, 0o666 & ~current_umask())  # mkstemp and safetensors make files that only their owner may read
            sync(beside)
            refuse_stranger(path, is_ours)  # somebody may have written there in the meantime
            os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def save_json(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, whole or not at all; its ``kind`` is the mark by which the next call may replace the file."""
    with atomic_file(path, has_kind(kind)) as beside:
        beside.write_text(json.dumps({"kind": kind, **content}, indent=1) + "\n", encoding="utf-8")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder, beside ``path``, to write files to; at the end it is renamed, after an error it is removed.

    Raises OutputError where it cannot be created or ``path`` exists at the end.
    """
    check_output_name(path)
    with output_errors(path):
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        with output_errors(path):
            yield beside
            os.chmod(beside, 0o777 & ~current_umask())  # mkdtemp makes folders that only their owner may read
            for file in beside.iterdir():
                sync(file)
            os.rename(beside, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors into OutputError that names the file that was to be written."""
    try:
        with _full_disk_errors(path):
            yield
    except OSError as error:
        raise OutputError(f"output {str(path)!r} cannot be written: {error.strerror or error}") from error


@contextmanager
def _full_disk_errors(path: Path) -> Iterator[None]:
    """Turn errors for want of space into OutputError, whatever library wrote; other errors may be of what was read."""
    try:
        yield
    except Exception as error:
        if reason := find_full_disk(error):
            raise OutputError(f"output {str(path)!r} cannot be written: {reason}") from error
        raise


def check_path_name(path: str | Path, what: str = "path") -> None:
    """Raise UsageError for a name that is not UTF-8, which most libraries cannot open. ``what``: its name in the message."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {text!r}: its name is not UTF-8: rename it, or give another one") from None


def check_output_name(path: str | Path) -> None:
    """Raise UsageError for an output that cannot be a local path: an address, or a name that is not UTF-8 or too long."""
    text = os.fspath(path)
    check_path_name(text, "output")
    if long := [part for part in Path(text).parts if len(os.fsencode(part)) > _MAX_NAME_BYTES]:
        raise UsageError(
            f"output {long[0][:20] + '…'!r}: a name of {len(os.fsencode(long[0])):,} bytes: at most {_MAX_NAME_BYTES}"
        )
    if _ADDRESS.match(text):
        raise UsageError(f"output {text!r} is an address: give a path on this machine, and copy the result there")


def refuse_other_content(folder: Path, names: Collection[str], what: str) -> None:
    """Raise UsageError if a folder, which need not exist, holds other names than these and hidden ones, or is a file.

    ``what``: what the folder is for, in the message. Raises OutputError if it cannot be read.
    """
    with output_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"output {str(folder)!r} is a file: choose a folder")
        entries = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".") if folder.exists() else []
    if others := [name for name in entries if name not in names]:
        raise UsageError(f"output {str(folder)!r} holds other files than {what} ({others[0]!r}): name another folder")


def check_target(path: Path, is_ours: Recognizer | None = None) -> None:
    """Raise the error now with which :func:`atomic_file` would refuse to write ``path``."""
    _create_beside(path, is_ours).unlink()


def _create_beside(path: Path, is_ours: Recognizer | None) -> Path:
    check_output_name(path)
    refuse_stranger(path, is_ours)
    with output_errors(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(descriptor)
    return Path(name)


def current_umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Write a file's content, or a folder's entries where the system can do that, to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Write a folder's entries to the disk, where the file system can do that."""
    with suppress(OSError):  # some file systems cannot sync a folder; the file itself is safe
        sync(path)


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; the system frees it when the process ends, however it ends.

    Raises OutputError where another process holds it, UsageError where a file with content or a symbolic link has its name.
    """
    lock = FileLock(path, timeout=0)
    with output_errors(path):
        refuse_stranger(path, _is_empty)  # some versions of filelock empty the file
        try:
            lock.acquire()
        except Timeout:  # a subclass of OSError
            raise OutputError(f"output {str(path.parent)!r}: another process is writing to it; wait for it or end it") from None
    try:
        yield
    finally:
        lock.release()


def _is_empty(path: Path) -> bool:
    return path.stat().st_size == 0
