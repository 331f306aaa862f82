"""From items of the input to batches of pixels: threads read and decode, the order is kept, a bad image costs one entry.

Threads are used rather than processes because reading, decoding and resizing release Python's lock. All threads share one
list of keys, an image of which many tiles are cut is decoded once, and nothing has to be pickled or to fit into a container's
shared memory.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from queue import Full, Queue
from typing import TypeVar

import torch
from PIL import Image

from densefeat.errors import DecodeError
from densefeat.images import MAX_PIXELS, DecodedImage, Item, printable_key
from densefeat.store import Failure

_T = TypeVar("_T")
_NO_PIXELS = torch.empty(0, dtype=torch.uint8)


@dataclass
class Batch:
    """The results for a range of input positions: rows for the network, failures, and tiles skipped for lack of content."""

    positions: int
    items: list[Item] = field(default_factory=list)
    images: list[DecodedImage] = field(default_factory=list)  # without their pixels
    failures: list[Failure] = field(default_factory=list)
    skipped: int = 0
    pixels: torch.Tensor | None = None  # uint8 (len(items), 3, size, size)


@dataclass(frozen=True)
class Decoding:
    """The steps from an item to pixels, uint8 ``(3, size, size)``."""

    geometry: Callable
    decoder: str = "torchvision"
    max_pixels: int = MAX_PIXELS

    def __call__(self, item: Item) -> DecodedImage | Failure | None:
        x, y = getattr(item, "x", None), getattr(item, "y", None)
        try:
            decoded = item.decode(self.decoder, self.max_pixels)
            return decoded and replace(decoded, pixels=self.prepare(decoded.pixels))
        except DecodeError as error:
            return Failure(printable_key(item.key), error.stage, str(error), x, y)
        except MemoryError:
            return Failure(printable_key(item.key), "decode", "out of memory", x, y)
        except Exception as error:  # file systems and codecs raise errors of their own kinds
            return Failure(printable_key(item.key), "decode", f"{type(error).__name__}: {error}", x, y)

    def prepare(self, pixels: Image.Image | torch.Tensor) -> torch.Tensor:
        try:
            return self.geometry(pixels)
        except Exception as error:
            raise DecodeError(f"{type(error).__name__}: {error}", "transform") from error


def decode_batches(
    items: Iterator[Item], batch_size: int, decoding: Decoding, pool: ThreadPoolExecutor, ahead: int
) -> Generator[Batch]:
    """Yield batches of ``batch_size`` positions, in order; ``ahead`` of them are read and decoded in advance.

    With ``ahead`` 0 all threads decode a batch when it is requested: if the network itself uses every core, decoding at the
    same time would only make the threads wait for each other.
    """
    submitted = ([(item, pool.submit(decoding, item)) for item in chunk] for chunk in _split_chunks(items, batch_size))
    with closing(_run_ahead(submitted, ahead) if ahead else submitted) as batches:
        for pending in batches:
            yield _collect_batch(pending)


def _run_ahead(values: Iterator[_T], ahead: int) -> Generator[_T]:
    """Yield the same values, of which a thread produces up to ``ahead`` in advance; it ends with this generator."""
    queue: Queue[tuple[bool, _T | BaseException | None]] = Queue(ahead)
    ended = threading.Event()

    def put(more: bool, value: _T | BaseException | None) -> None:
        while not ended.is_set():
            with suppress(Full):
                queue.put((more, value), timeout=0.1)
                return

    def feed() -> None:
        try:
            for value in values:
                put(True, value)
                if ended.is_set():
                    return
            put(False, None)
        except BaseException as error:
            put(False, error)

    thread = threading.Thread(target=feed, name="densefeat-input", daemon=True)
    thread.start()
    try:
        while (entry := queue.get())[0]:
            yield entry[1]  # type: ignore[misc]
        if isinstance(entry[1], BaseException):
            raise entry[1]
    finally:
        ended.set()
        thread.join()


def _split_chunks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _collect_batch(pending: list[tuple[Item, Future]]) -> Batch:
    batch, pixels = Batch(len(pending)), []
    for item, future in pending:
        result = future.result()
        if result is None:
            batch.skipped += 1
        elif isinstance(result, Failure):
            batch.failures.append(result)
        else:
            batch.items.append(item)
            batch.images.append(replace(result, pixels=_NO_PIXELS))
            pixels.append(result.pixels)
    batch.pixels = torch.stack(pixels) if pixels else None
    return batch


def count_usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
