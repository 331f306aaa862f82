"""Files that take their places together, once they were measured."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from densefeat.errors import OutputError
from densefeat.store.atomic import current_umask, sync, written


@contextmanager
def staged(*places: Path) -> Iterator[list[Path]]:
    """Paths to write to, of the same names, in a hidden folder beside; on leaving they are moved, the last of them first.

    The first is what a reader opens: it appears when the others are there. After an error nothing is left.
    Raises OutputError, before any work, where one of ``places`` exists or cannot be made.
    """
    for place in places:
        if os.path.lexists(place):
            raise OutputError(f"output {str(place)!r} exists: remove it or give another name")
    with written(places[0]):
        folder = Path(tempfile.mkdtemp(prefix=f".{places[0].name}.", suffix=".partial", dir=places[0].parent))
    try:
        paths = [folder / place.name for place in places]
        with written(places[0]):
            yield paths
            for path, place in reversed(list(zip(paths, places, strict=True))):
                settle(path)
                os.rename(path, place)
        with suppress(OSError):  # some file systems cannot sync a folder
            sync(places[0].parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(path: Path) -> None:
    """Sync a file, or a folder's files, and let others read it as the umask says."""
    mask = current_umask()
    for file in path.iterdir() if path.is_dir() else [path]:
        os.chmod(file, 0o666 & ~mask)
        sync(file)
    if path.is_dir():
        os.chmod(path, 0o777 & ~mask)
