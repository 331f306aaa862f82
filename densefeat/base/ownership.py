"""What densefeat may replace or delete: files that it wrote and recognizes, never through a link, never anybody else's.

A file in a folder that densefeat made (a store, a probe, a run, which have a record of their own) is known by its name. A file
that the user named is known by a mark inside: a line of HTML or Markdown, a field of a picture, a key of JSON.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

from densefeat.base.json_text import parse_json
from densefeat.errors import OutputError, UsageError

Recognizer = Callable[[Path], bool]

MARK = "densefeat"
MARKDOWN_MARK = f"<!-- generator: {MARK} -->\n"
_HTML_MARK = f'<meta name="generator" content="{MARK}">'.encode()  # as in templates/skeleton.html
_PICTURE_MARKS = {  # the first bytes, and what matplotlib makes of the metadata of pictures.py
    b"\x89PNG\r\n\x1a\n": b"tEXtSoftware\0" + MARK.encode(),
    b"<?xml": f"<dc:title>{MARK}</dc:title>".encode(),
}
_MARK_WITHIN = 4096  # bytes
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.partial")  # of tempfile.mkstemp in files.py


def refuse_stranger(path: Path, is_ours: Recognizer | None = None) -> None:
    """Raise an error that names ``path`` where something is there that densefeat must not replace.

    ``is_ours``: whether it recognizes the file; None: the folder is known to be densefeat's, and its files by their names.
    Raises UsageError for a symbolic link and for somebody else's file, OutputError for a folder and for special files.
    """
    if path.is_symlink():
        raise UsageError(f"output {str(path)!r} is a symbolic link: remove the link, or give another name")
    if path.is_dir() or not path.name:
        raise OutputError(f"output {str(path)!r} is a folder: give a file name")
    if not path.exists():
        return
    if not path.is_file():
        raise OutputError(f"output {str(path)!r} is no regular file: give another name")
    if is_ours is not None and not is_ours(path):
        raise UsageError(f"output {str(path)!r} exists and was not written by this command: move it away, or give another name")


def refuse_links(paths: Iterable[Path]) -> None:
    """Raise UsageError where one of a folder's own files and folders is a symbolic link: what it leads to is not ours."""
    for path in paths:
        if path.is_symlink():
            raise UsageError(f"{str(path)!r} is a symbolic link, through which nothing is written: put a real one there")


def is_plain_file(path: Path) -> bool:
    """Check whether ``path`` itself is a regular file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_plain_folder(path: Path) -> bool:
    """Check whether ``path`` itself is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def match_temporary(name: str) -> str | None:
    """Return the name of the file that a temporary file of :func:`densefeat.base.files.atomic_file` is for, by its own name."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else None


def remove_folder(folder: Path) -> None:
    """Remove a folder if nothing is left in it."""
    try:
        folder.rmdir()
    except OSError:  # it holds something else, which stays
        return


def recognize_none(path: Path) -> bool:  # noqa: ARG001  a recognizer
    """Recognize no file: none that exists may be replaced."""
    return False


def set_aside(path: Path, name: str) -> None:
    """Rename a damaged file to ``name``, or ``name-1``, …: the first of these names that is free."""
    names = (path.with_name(name + f"-{number}" * bool(number)) for number in count())
    path.rename(next(file for file in names if not os.path.lexists(file)))


def is_page(path: Path) -> bool:
    """Recognize a page of :func:`densefeat.base.pages.save_page`."""
    return _HTML_MARK in _read_start(path)


def is_markdown(path: Path) -> bool:
    """Recognize a Markdown file that begins with :data:`MARKDOWN_MARK`."""
    return _read_start(path).startswith(MARKDOWN_MARK.encode())


def is_picture(path: Path) -> bool:
    """Recognize a picture of :func:`densefeat.base.pictures.save_picture`."""
    start = _read_start(path)
    return any(start.startswith(magic) and mark in start for magic, mark in _PICTURE_MARKS.items())


def has_header(names: Sequence[str]) -> Recognizer:
    """Return a recognizer of CSV files whose first line is these names."""
    return partial(_begins_with_line, ",".join(names).encode())


def has_kind(kind: str) -> Recognizer:
    """Return a recognizer of JSON files whose ``kind`` is this one."""
    return partial(_names_kind, kind)


def _begins_with_line(line: bytes, path: Path) -> bool:
    return _read_start(path).splitlines()[:1] == [line]


def _names_kind(kind: str, path: Path) -> bool:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == kind


def _read_start(path: Path) -> bytes:
    """Read a file's first bytes; none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_MARK_WITHIN)
    except OSError:
        return b""
