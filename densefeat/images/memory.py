"""One budget of memory for all threads that decode: an image waits until it fits, and fails if it never will."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager, nullcontext

from densefeat.base import Ranks, measure_memory_limit
from densefeat.errors import DecodeError

_SHARE = 2  # the budget is this part of what the process may take: the rest is for the network, batches and libraries
_SMALL = 2**22  # bytes that are not counted: most images need less, and then nothing has to be locked
_NOTHING = nullcontext()


class MemoryBudget:
    """A number of bytes that the threads of this process share while they decode images.

    A thread that claims more than is free waits until others have given enough back. Threads that wait while they have some
    already, for an encoded image, could wait for each other: one of them at a time may therefore exceed the budget.
    """

    def __init__(self) -> None:
        self.start()

    def start(self, size: int | None = None, processes: int = 1) -> None:
        """Start in a process of which no thread decodes yet, such as one that was forked.

        Args:
            size: Bytes; None: half of what this process may take, divided by the ``processes`` that share it. Those of
                torchrun on this machine share it anyway.
        """
        self._changed = threading.Condition()
        self._size, self._processes = size, processes
        self._taken = 0
        self._exceeding: int | None = None  # a thread
        self._own = _Own()

    @contextmanager
    def limit(self, size: int | None) -> Iterator[None]:
        """Set the budget in bytes for a block of code; None: leave it."""
        before = self._size
        self._size = before if size is None else size
        try:
            yield
        finally:
            self._size = before

    @property
    def size(self) -> int:
        """The budget in bytes; the default is measured when it is needed for the first time, with all libraries loaded."""
        if self._size is None:
            processes = self._processes * Ranks.from_environment().local_world
            self._size = measure_memory_limit() // _SHARE // processes
        return self._size

    def hold(self) -> "_Hold":
        """Keep what this thread claims until the block ends, and give all of it back then; of nested blocks, the outermost.

        It should end when the decoded pixels are no longer needed, such as after they are resized. It decorates functions, too.
        """
        return _Hold(self)

    def claim(self, size: int, what: str) -> None:
        """Wait until ``size`` bytes are free, and take them until :meth:`hold` ends, which must be around this.

        Raises DecodeError (stage ``memory``) where they are more than the budget; ``what`` begins its sentence, such as
        ``"40×30 pixels"``.
        """
        if size < _SMALL:
            return
        own = self._own
        assert own.depth, "claimed outside of hold"
        with self._changed:
            if own.bytes + size > self.size:
                raise DecodeError(
                    f"{what} need {_format_bytes(own.bytes + size)} of memory to be decoded, more than the"
                    f" {_format_bytes(self.size)} for all images at a time (--memory)",
                    "memory",
                )
            me = threading.get_ident()
            self._changed.wait_for(lambda: self._taken + size <= self.size or (own.bytes and self._exceeding in (None, me)))
            if self._taken + size > self.size:
                self._exceeding = me
            own.bytes += size
            self._taken += size

    def reserve(self, size: int, what: str) -> AbstractContextManager[None]:
        """Claim ``size`` bytes for a block alone. Raises DecodeError as :meth:`claim` does."""
        return _NOTHING if size < _SMALL else self._reserve(size, what)

    def enter(self) -> None:
        """Begin a block of :meth:`hold`."""
        self._own.depth += 1

    def leave(self) -> None:
        """End a block of :meth:`hold`."""
        own = self._own
        own.depth -= 1
        if own.depth == 0 and own.bytes:
            self._give_back(own.bytes)

    @contextmanager
    def _reserve(self, size: int, what: str) -> Iterator[None]:
        with self.hold():
            self.claim(size, what)
            try:
                yield
            finally:
                self._give_back(size)

    def _give_back(self, size: int) -> None:
        own = self._own
        with self._changed:
            own.bytes -= size
            self._taken -= size
            if not own.bytes and self._exceeding == threading.get_ident():
                self._exceeding = None
            self._changed.notify_all()


class _Hold(ContextDecorator):
    """A block of :meth:`MemoryBudget.hold`; written out because every image enters a few."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget

    def __enter__(self) -> None:
        self.budget.enter()

    def __exit__(self, *error: object) -> None:
        self.budget.leave()


class _Own(threading.local):
    """What this thread has of the budget, and how many blocks of :meth:`MemoryBudget.hold` it is in."""

    bytes = 0
    depth = 0


def _format_bytes(size: int) -> str:
    """Format a number of bytes for people: ``"5.4 GB"``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


MEMORY = MemoryBudget()
