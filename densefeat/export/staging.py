"""Files that take their places together, once they were measured."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from densefeat.base import current_umask, output_errors, sync
from densefeat.errors import UsageError


@contextmanager
def staged(*places: Path) -> Iterator[list[Path]]:
    """Paths to write to, of the same names, in a hidden folder beside; on leaving they are moved, the last of them first.

    The first is what a reader opens: it appears when the others are there. After an error nothing is left.
    Raises UsageError, before any work, where one of ``places`` exists or has no folder; OutputError where it cannot be made.
    """
    _check_free(places)
    folder = places[0].parent / f".{places[0].name}.{secrets.token_hex(4)}.partial"
    try:
        with output_errors(places[0]):
            folder.mkdir(0o700)
        paths = [folder / place.name for place in places]
        yield paths
        _check_free(places)  # the work took its time
        with output_errors(places[0]):
            _move(paths, places)
        with suppress(OSError):  # some file systems cannot sync a folder
            sync(places[0].parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_free(places: Sequence[Path]) -> None:
    for place in places:
        if os.path.lexists(place):
            raise UsageError(f"output {str(place)!r} exists: remove it or give another name")
        if not place.parent.is_dir():
            raise UsageError(f"output {str(place)!r}: there is no folder {str(place.parent)!r}: make it first")


def _move(paths: Sequence[Path], places: Sequence[Path]) -> None:
    """All to their places, the last first, or none."""
    for path in paths:
        _settle(path)
    try:
        for path, place in reversed(list(zip(paths, places, strict=True))):
            os.rename(path, place)
    except BaseException:
        for path, place in zip(paths, places, strict=True):
            if not path.exists():  # it was moved
                shutil.rmtree(place) if place.is_dir() else place.unlink()
        raise


def _settle(path: Path) -> None:
    """Sync a file, or a folder's files, and let others read it as the umask says."""
    mask = current_umask()
    for file in path.iterdir() if path.is_dir() else [path]:
        os.chmod(file, 0o666 & ~mask)
        sync(file)
    if path.is_dir():
        os.chmod(path, 0o777 & ~mask)
