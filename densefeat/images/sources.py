"""Where images come from: a folder, as an ordered list of files."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from densefeat.errors import DecodeError, UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

MAX_BYTES = 2**30  # of one file


@dataclass(frozen=True, slots=True)
class ImageFile:
    """``key``: the path relative to ``folder``, forward slashes, unique. ``folder``: absolute."""

    key: str
    folder: str

    def read(self) -> bytes:
        """The file's bytes; DecodeError (stage ``read``) where it is no regular file inside the folder, or unreadable."""
        path = os.path.join(self.folder, self.key)
        try:
            self.key.encode()
        except UnicodeEncodeError:
            raise DecodeError("the name is not valid UTF-8", "read") from None
        try:
            if not Path(os.path.realpath(path)).is_relative_to(self.folder):
                raise DecodeError("a symbolic link out of the folder", "read")
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                folder = stat.S_ISDIR(status.st_mode)
                raise DecodeError("a folder that cannot be listed" if folder else "not a regular file", "read")
            if status.st_size > MAX_BYTES:
                raise DecodeError(f"{status.st_size:,} bytes are more than the limit of {MAX_BYTES:,}", "read")
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise DecodeError(error.strerror or type(error).__name__, "read") from error

    @property
    def printable_key(self) -> str:
        """The key with bytes that are not UTF-8 shown as escapes."""
        return self.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def find_images(folder: str | Path) -> list[ImageFile]:
    """All files below ``folder`` with an image's extension (any case), sorted by key: the same order on every machine.

    Linked folders are not entered. A folder that cannot be listed stands in the list itself, and fails to be read.
    Raises UsageError where ``folder`` is none, cannot be read, or holds no such file.
    """
    root = os.path.realpath(folder)
    if not os.path.isdir(root):
        what = "is a file, not a folder" if os.path.exists(root) else "no such folder"
        raise UsageError(f"images {str(folder)!r}: {what}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UsageError(f"images {str(folder)!r}: no permission to read this folder")
    keys: list[str] = []

    def keep_unlisted(error: OSError) -> None:
        keys.append(Path(os.path.relpath(error.filename, root)).as_posix())

    for directory, _, names in os.walk(root, onerror=keep_unlisted):
        relative = os.path.relpath(directory, root)
        keys += [Path(relative, name).as_posix() for name in names if name.lower().endswith(EXTENSIONS)]
    if not keys:
        raise UsageError(f"images {str(folder)!r}: no file with an image's extension ({', '.join(EXTENSIONS)}) in it")
    return [ImageFile(key, root) for key in sorted(keys)]
