"""Ctrl-C and SIGTERM: as a request to stop at the next good moment, or as an exception at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGUSR1 is what schedulers send some time before they preempt a job
PREEMPTION_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


class Interrupted(KeyboardInterrupt):
    """The end of a job that a signal stopped. ``exit_code``: 128 plus the signal's number, as shells have it."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """A request to stop, made by a signal: true once the signal has come."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def stop_on_signal(*signals: signal.Signals) -> Iterator[StopRequest]:
    """Turn the first of these signals into a request to stop; a second one raises KeyboardInterrupt.

    ``signals``: SIGINT and SIGTERM by default. Signals that the process ignores stay ignored. Python lets only the main thread
    set handlers: in other threads the request stays false.
    """
    request = StopRequest()
    if not _in_main_thread():
        yield request
        return

    def note_signal(number: int, _: FrameType | None) -> None:
        if request:
            raise KeyboardInterrupt
        request.signal = number

    previous: dict[int, Any] = {}
    for number in signals or (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell ignores SIGINT for its background jobs
            previous[number] = signal.signal(number, note_signal)
    try:
        yield request
    finally:
        for replaced, handler in previous.items():
            signal.signal(replaced, handler)


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise Interrupted at SIGTERM, as Python raises KeyboardInterrupt at SIGINT, so that temporary files are removed.

    Does nothing where SIGTERM has a handler already, and outside of the main thread.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def raise_interrupted(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second signal would end the clean-up
        raise Interrupted("stopped by SIGTERM", 128 + number)

    signal.signal(signal.SIGTERM, raise_interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
