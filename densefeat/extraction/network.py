"""From batches of pixels to batches of features: the pass through the network, in memory that suffices."""

import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from densefeat.errors import DensefeatError
from densefeat.extraction.decoding import Batch
from densefeat.features import FeatureExtractor
from densefeat.images import printable_key
from densefeat.store import Failure

_Features = dict[str, np.ndarray]


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
    """Return the features of uint8 pixels ``(N, 3, H, W)``, on the extractor's device."""
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
        batch.failures.append(Failure(printable_key(batch.items[i].key), "network", reason, image.x, image.y))
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
    side = extractor.preprocessing.size
    blank = torch.zeros(batch_size, 3, side, side, dtype=torch.uint8, device=extractor.device)
    extractor.forward(extractor.preprocessing.normalize(blank))
    torch.accelerator.synchronize()
    start = time.perf_counter()
    for _ in range(2):
        extractor.forward(extractor.preprocessing.normalize(blank))
    torch.accelerator.synchronize()
    return 2 * batch_size / (time.perf_counter() - start)
