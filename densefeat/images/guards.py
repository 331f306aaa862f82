"""What holds for every decoder: errors of one kind, no warnings, and a look at the size before memory is allocated."""

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from densefeat.base import describe_error
from densefeat.errors import DecodeError, UsageError

MAX_PIXELS = 2 * 89_478_485  # twice Pillow's warning limit: 0.5 GB as RGB
_SHORT_SIDE = 512  # to which an image may be resized before it is cropped
_USUAL_ASPECT = 100  # longer strips are held to the limit in their resized form, too


def check_image_size(width: int, height: int, max_pixels: int) -> None:
    """Raise DecodeError for a size that must not be decoded, before memory for pixels is allocated.

    A strip also counts by its size once its short side is resized for a network, which takes more memory than its pixels do.
    """
    short, long = sorted((width, height))
    if short < 1:
        raise DecodeError(f"{width}×{height} pixels")
    limit = f"more than the limit of {max_pixels:,} (--max-pixels)"
    if short * long > max_pixels:
        raise DecodeError(f"{width}×{height} pixels are {limit}")
    resized = _SHORT_SIDE**2 * long // short
    if long > _USUAL_ASPECT * short and resized > max_pixels:
        raise DecodeError(f"{width}×{height} pixels, a strip that would be resized to {resized:,}, are {limit}")


class _QuietThreads(threading.local):
    """The pattern of a warnings filter that matches all messages of threads that are inside :func:`decode_errors`.

    Filters are pickled with tasks for other processes: there this becomes that process's own object. scikit-learn makes filters
    for its workers from ``pattern``, which matches nothing.
    """

    quiet = False
    pattern = "(?!)"

    def match(self, _: str) -> bool:
        return self.quiet

    def __reduce__(self) -> str:
        return "_quiet_threads"


_quiet_threads = _QuietThreads()
_FILTER: Any = ("ignore", _quiet_threads, Warning, None, 0)


@contextmanager
def decode_errors() -> Iterator[None]:
    """Raise errors of all kinds as DecodeError, and silence Pillow's warnings on size and odd metadata in this thread.

    ``warnings.catch_warnings`` would replace the filters of all threads, and two threads that overlap would not restore them.
    """
    if not warnings.filters or warnings.filters[0] is not _FILTER:
        warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
    before, _quiet_threads.quiet = _quiet_threads.quiet, True
    try:
        yield
    except (DecodeError, UsageError):
        raise
    except Exception as error:
        reason = describe_error(error)
        reason = re.sub(r"^\w+, \S+:\d+, ", "", reason)  # the place in torchvision's source
        raise DecodeError(f"{type(error).__name__}: {reason}") from error
    finally:
        _quiet_threads.quiet = before


class _QuietLog(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return not _quiet_threads.quiet


_quiet_log = _QuietLog()


def silence_logger(name: str) -> None:
    """Keep what a library logs in threads that are inside :func:`decode_errors` out of every log."""
    logging.getLogger(name).addFilter(_quiet_log)  # which adds it once
