"""A cache of what was read or decoded last, bounded in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from densefeat.errors import DecodeError

_FAILURE_BYTES = 1000  # counted for a failure that a cache keeps


class HasBytes(Protocol):
    @property
    def nbytes(self) -> int: ...


_T = TypeVar("_T", bound=HasBytes)


class ByteCache(Generic[_T]):
    """A cache of the values used last, up to ``max_bytes`` in all, and always the newest. Thread-safe; pickled empty.

    Threads that need the same value at the same time compute it once. A failure to decode is kept like a value.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0  # bytes of ``values``
        self.values: OrderedDict[Hashable, tuple[Future[_T], int]] = OrderedDict()
        self.pending: dict[Hashable, Future[_T]] = {}
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.max_bytes,)

    def get(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        """Return the value of ``key``, computing it if it is not there. An error is raised in all threads that wait for it."""
        with self.lock:
            future = self.pending.get(key)
            if key in self.values:
                self.values.move_to_end(key)
                future = self.values[key][0]
            is_first = future is None
            if future is None:
                future = self.pending[key] = Future()
        if is_first:
            self._fill(key, future, compute)
        try:
            return future.result()
        except DecodeError as error:  # threads must not raise the same object
            raise DecodeError(str(error), error.stage) from None

    def _fill(self, key: Hashable, future: "Future[_T]", compute: Callable[[], _T]) -> None:
        size = None
        try:
            value = compute()
            size = value.nbytes
            future.set_result(value)
        except DecodeError as error:
            size = _FAILURE_BYTES if error.stage != "read" else None
            future.set_exception(DecodeError(str(error), error.stage))  # without frames, which would keep pixels alive
        except BaseException as error:
            future.set_exception(error)
        with self.lock:
            del self.pending[key]
            if size is not None:
                self.values[key] = future, size
                self.size += size
            while self.size > self.max_bytes and len(self.values) > 1:
                self.size -= self.values.popitem(last=False)[1][1]
