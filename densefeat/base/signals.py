"""Ctrl-C and SIGTERM as a request to stop after the batch; a second one stops at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Stopped on request, with everything saved. ``exit_code``: 128 and the signal's number, as shells have it."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """False until a signal asks to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def stop_on_signal(*signals: signal.Signals) -> Iterator[StopRequest]:
    """``signals``: SIGINT and SIGTERM where none is named. Only the main thread may set handlers; elsewhere none comes."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _: FrameType | None) -> None:
        if request:
            raise KeyboardInterrupt
        request.signal = number

    before: dict[int, Any] = {}
    for asked in signals or (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(asked) is not signal.SIG_IGN:  # as for a shell's background jobs
            before[asked] = signal.signal(asked, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
