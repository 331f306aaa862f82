"""Batches through the network: what fits, what overlaps, and which embeddings are numbers."""

import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from densefeat.errors import DensefeatError
from densefeat.extraction.pipeline import Batch
from densefeat.features import FeatureExtractor
from densefeat.images import printable_key
from densefeat.store import Failure

_Features = dict[str, np.ndarray]


@dataclass
class _Pending:
    """Features on their way to the host."""

    batch: Batch
    tensors: dict[str, torch.Tensor]
    ready: torch.cuda.Event | None


def run_network(
    batches: Iterable[Batch], extractor: FeatureExtractor, dtype: str, halve: bool = False
) -> Generator[tuple[Batch, _Features]]:
    """Each batch with its features ``(rows, …)`` of ``dtype``; rows that are not finite become failures of stage ``network``.

    On CUDA a batch's features are fetched after the next has been sent, so that copies and Python hide behind the network.
    ``halve``: split a batch that does not fit into memory, instead of raising DensefeatError.
    """
    behind: _Pending | None = None
    for batch in batches:
        pending = _send(batch, extractor, dtype, halve)
        if extractor.device.type != "cuda":
            yield _fetch(pending)
            continue
        if behind is not None:
            yield _fetch(behind)
        behind = pending
    if behind is not None:
        yield _fetch(behind)


def _send(batch: Batch, extractor: FeatureExtractor, dtype: str, halve: bool) -> _Pending:
    if batch.pixels is None:
        return _Pending(batch, {}, None)
    cuda = extractor.device.type == "cuda"
    pixels = batch.pixels.pin_memory() if cuda else batch.pixels
    features = _forward(pixels, extractor, halve)
    tensors = {name: value.to(getattr(torch, dtype)).to("cpu", non_blocking=cuda) for name, value in features.items()}
    ready = None
    if cuda:
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(extractor.device))
    return _Pending(batch, tensors, ready)


def _forward(pixels: torch.Tensor, extractor: FeatureExtractor, halve: bool) -> dict[str, torch.Tensor]:
    """uint8 pixels to features on the extractor's device."""
    try:
        sent = pixels.to(extractor.device, non_blocking=True)
        return extractor.forward(extractor.preprocessing.normalize(sent))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
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


def _out_of_memory(error: BaseException) -> bool:
    """torch has a class of its own for accelerators only."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _fetch(pending: _Pending) -> tuple[Batch, _Features]:
    if pending.ready is not None:
        pending.ready.synchronize()
    features = {name: value.numpy() for name, value in pending.tensors.items()}
    return _keep_finite(pending.batch, features) if features else (pending.batch, features)


def _keep_finite(batch: Batch, features: _Features) -> tuple[Batch, _Features]:
    """Without the rows that hold NaN or infinity, which become failures."""
    finite = np.all([np.isfinite(value).reshape(len(value), -1).all(1) for value in features.values()], axis=0)
    if finite.all():
        return batch, features
    for i in np.flatnonzero(~finite):
        image = batch.images[i]
        reason = "an embedding that is not finite"
        batch.failures.append(Failure(printable_key(batch.items[i].key), "network", reason, image.x, image.y))
    batch.items = [item for item, good in zip(batch.items, finite, strict=True) if good]
    batch.images = [image for image, good in zip(batch.images, finite, strict=True) if good]
    return batch, {name: value[finite] for name, value in features.items()}


def choose_batch_size(asked: int | str, extractor: FeatureExtractor) -> tuple[int, bool]:
    """Images a pass, and for ``"auto"`` that batches are halved where they do not fit."""
    auto = asked == "auto"
    return fitting_batch_size(extractor) if auto else int(asked), auto


def fitting_batch_size(extractor: FeatureExtractor, largest: int = 1024) -> int:
    """The smallest power of two from 32 up to which a larger one gains under 3 %, of those that fit into memory."""
    if extractor.device.type == "cpu":
        return 32  # the extractor cuts its own chunks there
    best_size, best_rate, size = 32, 0.0, 32
    while size <= largest:
        try:
            rate = _images_per_second(extractor, size)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            break
        if rate < 1.03 * best_rate:
            break
        best_size, best_rate, size = size, rate, 2 * size
    return best_size


def _images_per_second(extractor: FeatureExtractor, batch_size: int) -> float:
    """Of the second and third pass over blank images on an accelerator."""
    side = extractor.preprocessing.size
    blank = torch.zeros(batch_size, 3, side, side, dtype=torch.uint8, device=extractor.device)
    extractor.forward(extractor.preprocessing.normalize(blank))
    torch.accelerator.synchronize()
    began = time.perf_counter()
    for _ in range(2):
        extractor.forward(extractor.preprocessing.normalize(blank))
    torch.accelerator.synchronize()
    return 2 * batch_size / (time.perf_counter() - began)
