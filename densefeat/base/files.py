"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from densefeat.errors import OutputError


@contextmanager
def atomic_file(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """A hidden file to write to; on leaving it is synced and takes ``path``'s place, or is removed after an error.

    ``folder``: where to write it, on the same file system; None: beside ``path``.
    Raises OutputError, before any work, where the file could not be made.
    """
    beside = _make_beside(path, folder or path.parent)
    try:
        yield beside
        with output_errors(path):
            os.chmod(beside, 0o666 & ~current_umask())  # mkstemp and safetensors make files that nobody else may read
            sync(beside)
            os.replace(beside, path)
        with suppress(OSError):  # some file systems cannot sync a folder; the file itself is safe
            sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """The system's errors as OutputError, naming the file that was to be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"output {str(path)!r} cannot be written: {error.strerror or error}") from error


def check_target(path: Path) -> None:
    """Raise OutputError now if :func:`atomic_file` could not make ``path``."""
    _make_beside(path, path.parent).unlink()


def _make_beside(path: Path, folder: Path) -> Path:
    if path.is_dir() or not path.name:
        raise OutputError(f"output {str(path)!r} is a folder: give a file name")
    if path.exists() and not path.is_file():
        raise OutputError(f"output {str(path)!r} is no regular file: give another name")
    with output_errors(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=folder)
    os.close(descriptor)
    return Path(name)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """fsync a file or, where the system can, a folder's entries."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
