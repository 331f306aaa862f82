"""From items of the input to batches of features: threads read and decode, then the network computes.

The order is kept, and an image that cannot be read costs one entry. Threads are used rather than processes because reading,
decoding and resizing release Python's lock. All threads share one list of keys, an image of which many tiles are cut is decoded
once, and nothing has to be pickled or to fit into a container's shared memory.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from queue import Full, Queue
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from densefeat.errors import DecodeError, DensefeatError, UnknownRange
from densefeat.features import FeatureExtractor
from densefeat.images import (
    MAX_PIXELS,
    MEMORY,
    PHOTOGRAPHS,
    DecodedImage,
    ImageItem,
    Item,
    PixelRule,
    name_image,
    printable_key,
    read_tags,
)
from densefeat.store import Failure

_T = TypeVar("_T")
_NO_PIXELS = torch.empty(0, dtype=torch.uint8)
_Features = dict[str, np.ndarray]


@dataclass
class Batch:
    """The results for a range of input positions: rows for the network, failures, and tiles skipped for lack of content."""

    positions: int
    items: list[Item] = field(default_factory=list)
    images: list[DecodedImage] = field(default_factory=list)  # without their pixels
    failures: list[Failure] = field(default_factory=list)
    skipped: int = 0
    pixels: torch.Tensor | None = None  # uint8 or float32 (len(items), C, size, size)


@dataclass(frozen=True)
class Decoding:
    """The steps from an item to pixels ``(C, size, size)``, uint8 or, by a rule with floats, float32."""

    geometry: Callable
    decoder: str = "torchvision"
    max_pixels: int = MAX_PIXELS
    rule: PixelRule = PHOTOGRAPHS
    dicom_tags: tuple[str, ...] = ()

    def __call__(self, item: Item) -> DecodedImage | Failure | None:
        place = {name: getattr(item, name, None) for name in ("x", "y", "page")}
        try:
            with MEMORY.hold():
                decoded = item.decode(self.decoder, self.max_pixels, self.rule)
                return decoded and replace(decoded, pixels=self.prepare(decoded.pixels), tags=self._read_tags(item))
        except DecodeError as error:
            return Failure(printable_key(item.key), error.stage, str(error), **place)
        except UnknownRange as error:
            raise name_image(error, item.key) from error
        except MemoryError:
            return Failure(printable_key(item.key), "memory", "out of memory", **place)
        except Exception as error:  # file systems and codecs raise errors of their own kinds
            return Failure(printable_key(item.key), "decode", f"{type(error).__name__}: {error}", **place)

    def _read_tags(self, item: Item) -> tuple[str | None, ...]:
        if not self.dicom_tags:
            return ()
        assert isinstance(item, ImageItem)  # no tiles
        return tuple(read_tags(item.read(), self.dicom_tags).values())

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


@dataclass
class _Transfer:
    """The features of a batch on their way from the device to the host."""

    batch: Batch
    tensors: dict[str, torch.Tensor]
    ready: torch.cuda.Event | None


def embed_batches(
    batches: Iterable[Batch], extractor: FeatureExtractor, dtype: str, halve: bool = False
) -> Generator[tuple[Batch, _Features]]:
    """Yield each batch with its features ``(rows, …)`` of ``dtype``; rows that are not finite become failures.

    On CUDA a batch's features are fetched after the next batch has been sent, so that copies overlap with the network.
    With ``halve``, a batch that does not fit into memory is split; without, DensefeatError is raised.
    """
    previous: _Transfer | None = None
    for batch in batches:
        transfer = _send(batch, extractor, dtype, halve)
        if extractor.device.type != "cuda":
            yield _fetch(transfer)
            continue
        if previous is not None:
            yield _fetch(previous)
        previous = transfer
    if previous is not None:
        yield _fetch(previous)


def _send(batch: Batch, extractor: FeatureExtractor, dtype: str, halve: bool) -> _Transfer:
    if batch.pixels is None:
        return _Transfer(batch, {}, None)
    cuda = extractor.device.type == "cuda"
    pixels = batch.pixels.pin_memory() if cuda else batch.pixels
    features = _forward(pixels, extractor, halve)
    tensors = {name: value.to(getattr(torch, dtype)).to("cpu", non_blocking=cuda) for name, value in features.items()}
    ready = None
    if cuda:
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(extractor.device))
    return _Transfer(batch, tensors, ready)


def _forward(pixels: torch.Tensor, extractor: FeatureExtractor, halve: bool) -> dict[str, torch.Tensor]:
    """Return the features of pixels ``(N, C, H, W)``, uint8 or float32, on the extractor's device."""
    try:
        on_device = pixels.to(extractor.device, non_blocking=True)
        return extractor.forward(extractor.preprocessing.normalize(on_device))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if not halve:
            raise DensefeatError(
                f"out of memory with {len(pixels)} images a pass: give a smaller --batch-size, or --batch-size auto"
            ) from error
        if len(pixels) == 1:
            raise DensefeatError("out of memory with a single image: give a smaller --image-size or fewer --blocks") from error
    if extractor.device.type == "cuda":
        torch.cuda.empty_cache()
    halves = [_forward(half, extractor, halve) for half in pixels.split(-(-len(pixels) // 2))]
    return {name: torch.cat([half[name] for half in halves]) for name in halves[0]}


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out; on a CPU torch raises a plain RuntimeError for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _fetch(transfer: _Transfer) -> tuple[Batch, _Features]:
    if transfer.ready is not None:
        transfer.ready.synchronize()
    features = {name: value.numpy() for name, value in transfer.tensors.items()}
    return _keep_finite(transfer.batch, features) if features else (transfer.batch, features)


def _keep_finite(batch: Batch, features: _Features) -> tuple[Batch, _Features]:
    """Remove the rows that hold NaN or infinity; they become failures."""
    finite = np.all([np.isfinite(value).reshape(len(value), -1).all(1) for value in features.values()], axis=0)
    if finite.all():
        return batch, features
    for i in np.flatnonzero(~finite):
        image = batch.images[i]
        reason = "the embedding is not finite"
        batch.failures.append(Failure(printable_key(batch.items[i].key), "network", reason, image.x, image.y, image.page))
    batch.items = [item for item, good in zip(batch.items, finite, strict=True) if good]
    batch.images = [image for image, good in zip(batch.images, finite, strict=True) if good]
    return batch, {name: value[finite] for name, value in features.items()}


def choose_batch_size(batch_size: int | str, extractor: FeatureExtractor) -> tuple[int, bool]:
    """Return the number of images a pass, and whether batches that do not fit are halved, as they are for ``"auto"``."""
    auto = batch_size == "auto"
    return _find_batch_size(extractor) if auto else int(batch_size), auto


def _find_batch_size(extractor: FeatureExtractor, largest: int = 1024) -> int:
    """Return the smallest power of two, from 32, after which doubling it gains less than 3 % or exceeds memory."""
    if extractor.device.type == "cpu":
        return 32  # on a CPU the extractor works in chunks of its own size
    best_size, best_rate, size = 32, 0.0, 32
    while size <= largest:
        try:
            rate = _measure_rate(extractor, size)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            break
        if rate < 1.03 * best_rate:
            break
        best_size, best_rate, size = size, rate, 2 * size
    return best_size


def _measure_rate(extractor: FeatureExtractor, batch_size: int) -> float:
    """Measure images per second on an accelerator, over the second and third pass over blank images."""
    blank = extractor.preprocessing.make_blank(batch_size, extractor.device)
    extractor.forward(extractor.preprocessing.normalize(blank))
    torch.accelerator.synchronize()
    start = time.perf_counter()
    for _ in range(2):
        extractor.forward(extractor.preprocessing.normalize(blank))
    torch.accelerator.synchronize()
    return 2 * batch_size / (time.perf_counter() - start)
