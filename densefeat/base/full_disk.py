"""Whether an error is about a disk that is full; the command line asks without loading what writes files."""

import errno
import os
import re

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errors that only writing has


def find_full_disk(error: BaseException) -> str | None:
    """Return the system's words, "No space left on device" and the like, if that is what an error is about; else None.

    Libraries in Rust, such as safetensors, put the system's number into the message of an error of their own.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(match[1])
    return os.strerror(number) if number in _FULL else None
