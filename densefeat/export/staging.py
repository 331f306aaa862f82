"""Files that appear together under their final names, once they are complete."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from densefeat.base import check_output_name, current_umask, output_errors, sync
from densefeat.errors import UsageError

_ROOM = 2**20  # bytes, more than a full disk has left
_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml", "safetensors": ".safetensors", "hub-folder": ""}


def list_places(to: str, out: Path) -> list[Path]:
    """Return the files of an export to a format, ``out`` first.

    Raises UsageError where ``out`` has another ending, one of the files exists, or the folder does not.
    """
    check_output_name(out)
    suffix = _SUFFIXES[to]
    if not out.name or (suffix and out.suffix != suffix):
        raise UsageError(f"output {str(out)!r}: give a name{' that ends in ' * bool(suffix)}{suffix}")
    places = [out, out.with_suffix(".bin")] if to == "openvino" else [out]
    _check_free(places)
    return places


@contextmanager
def stage_files(*places: Path) -> Iterator[list[Path]]:
    """Yield paths of the same names in a hidden folder beside ``places``; move them there at the end, the last one first.

    The first is the file that a reader opens, so it appears after the others. After an error nothing is left. Raises
    UsageError, before any work, where one of ``places`` exists or its folder does not; OutputError where it cannot be written.
    """
    _check_free(places)
    folder = places[0].parent / f".{places[0].name}.{secrets.token_hex(4)}.partial"
    try:
        with output_errors(places[0]):
            folder.mkdir(0o700)
        paths = [folder / place.name for place in places]
        yield paths
        _check_free(places)  # somebody may have written there in the meantime
        with output_errors(places[0]):
            _move(paths, places)
        with suppress(OSError):  # some file systems cannot sync a folder
            sync(places[0].parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ask_system(folder: Path) -> Iterator[None]:
    """Raise the system's own OSError where native code failed to write to ``folder`` because the disk is full.

    The errors of C++ streams do not say why they failed.
    """
    try:
        yield
    except OSError:
        raise
    except Exception:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
            file.flush()
        raise


def _check_free(places: Sequence[Path]) -> None:
    for place in places:
        if os.path.lexists(place):
            raise UsageError(f"output {str(place)!r} exists: remove it or give another name")
        if not place.parent.is_dir():
            raise UsageError(f"output {str(place)!r}: there is no folder {str(place.parent)!r}: make it first")


def _move(paths: Sequence[Path], places: Sequence[Path]) -> None:
    """Move all files, the last one first; after an error remove those that were moved."""
    for path in paths:
        _finish_file(path)
    try:
        for path, place in reversed(list(zip(paths, places, strict=True))):
            os.rename(path, place)
    except BaseException:
        for path, place in zip(paths, places, strict=True):
            if not path.exists():  # moved already
                shutil.rmtree(place) if place.is_dir() else place.unlink()
        raise


def _finish_file(path: Path) -> None:
    """Sync a file, or a folder's files, and set the permissions that the umask asks for."""
    mask = current_umask()
    for file in path.iterdir() if path.is_dir() else [path]:
        os.chmod(file, 0o666 & ~mask)
        sync(file)
    if path.is_dir():
        os.chmod(path, 0o777 & ~mask)
