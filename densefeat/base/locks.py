"""One writer at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from densefeat.base.files import output_errors
from densefeat.errors import OutputError


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; the system frees it when the process ends, however it ends. OutputError where it is held."""
    lock = FileLock(path, timeout=0)
    with output_errors(path):
        try:
            lock.acquire()
        except Timeout:  # an OSError, too
            raise OutputError(f"output {str(path.parent)!r}: another process is writing to it; wait for it or end it") from None
    try:
        yield
    finally:
        lock.release()
