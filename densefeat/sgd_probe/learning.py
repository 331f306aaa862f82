"""The training of parallel heads on augmented images: a batch passes the frozen network once a step."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from timm.data import create_transform

from densefeat.base import Interrupted, StopRequest
from densefeat.errors import DensefeatError, UsageError
from densefeat.features import FeatureExtractor
from densefeat.images import RandomAccess, Source, printable_key
from densefeat.labels import Targets
from densefeat.training import (
    MAX_GROUP,
    EncodedImages,
    ImageDataset,
    MicroBatch,
    Sampler,
    WorkerImages,
    World,
    make_mirrored_crops,
    micro_batch_slices,
    newest_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)

_IDENTITY, _GROUPS = "asked", "groups"  # keys in a checkpoint
_GPU_POLL_STEPS = 10  # steps between checks for a stop request: each waits for the GPU


class LearningHeads(Protocol):
    """Heads that learn together; ``step``: how many steps they have taken."""

    step: int

    def learn(
        self, features: Mapping[str, torch.Tensor], y: torch.Tensor, batch_size: int, steps: int, world: World
    ) -> None: ...  # fmt: skip
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, saved: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainingStream:
    """Batches of augmented training images. ``part``: this rank's share of each; ``steps``: of all epochs together.

    ``targets``: int64 ``(n,)`` or bool ``(n, K)``; the labels of a batch are positions in it.
    """

    images: WorkerImages
    sampler: Sampler
    part: slice
    targets: torch.Tensor
    steps: int

    def parts(self, start: int) -> Iterator[MicroBatch]:
        """Yield this rank's share of each batch from step ``start`` on."""
        for parts in self.images.train_batches(self.sampler, [self.part], "", start, self.steps):
            yield from parts


def open_training_stream(
    source: Source,
    targets: Targets,
    paths: list[str],
    train: np.ndarray,
    extractor: FeatureExtractor,
    epochs: int,
    batch_size: int,
    workers: int,
    seed: int,
    world: World,
) -> TrainingStream:
    """Open the training images, augmented as in DINOv2's linear evaluation: random crops of 8 % to 100 %, mirrored or not.

    ``targets``, ``paths``: of n images; ``train``: bool ``(n,)``, the images to learn from; ``batch_size``: of all ranks.
    Raises UsageError for an input that cannot be read by position.
    """
    encoded = _match_images(source, paths, train)
    if encoded.groups is not None and encoded.groups.max() > MAX_GROUP:
        raise UsageError(
            f"row groups of {encoded.groups.max():,} images: write the file with at most {MAX_GROUP:,}, as row_group_size=1000"
        )
    size = extractor.preprocessing.size
    images = ImageDataset(encoded, extractor.preprocessing, "none", seed)
    # not one of the recipes' augmentations: their crops are milder, or come with changes of colour
    if images.rule.floating:
        images.augmentation = make_mirrored_crops(size, (0.08, 1.0))
    else:
        images.augmentation = create_transform(
            (3, size, size), is_training=True, color_jitter=0.0, interpolation="bicubic", normalize=False
        )
    loader = WorkerImages(images, extractor.preprocessing, workers, world.device, torch.float32, set())
    sampler = Sampler(np.flatnonzero(encoded.labels >= 0), encoded.groups, batch_size, seed)
    (part,) = micro_batch_slices(batch_size, 1, world.rank, world.size)
    values = torch.from_numpy(targets.values).to(world.device)
    return TrainingStream(loader, sampler, part, values, epochs * sampler.steps_per_epoch)


def _match_images(source: Source, paths: list[str], train: np.ndarray) -> EncodedImages:
    """Label each image with its position in ``paths``, or -1 if it is not to be learnt from."""
    if not isinstance(source, RandomAccess):
        raise UsageError(
            "protocols 'sgd' and 'attentive' read images by position: give a folder, a list, Parquet files or tar files"
        )
    rows = np.flatnonzero(train)
    positions = locate_images(source, [paths[row] for row in rows])
    labels = np.full(len(source.keys()), -1)
    labels[positions] = rows
    return EncodedImages(source, labels, [])


def locate_images(source: Source, paths: Sequence[str]) -> np.ndarray:
    """Find the position of each path, int64 ``(len(paths),)``. Raises DensefeatError where one is missing."""
    wanted = set(paths)
    keys = (printable_key(os.fsdecode(key)) for key in source.keys().to_pylist())
    places = {key: position for position, key in enumerate(keys) if key in wanted}
    if missing := [path for path in paths if path not in places]:
        raise DensefeatError(f"{len(missing):,} images are missing now, {missing[0]!r} first: extract them again")
    return np.array([places[path] for path in paths], np.int64)


def limit_batch_size(batch_size: int, images: int, world: World) -> int:
    """Reduce a batch size to the number of images, and to a multiple of the ranks. Raises UsageError for too few images."""
    size = min(batch_size, images) // world.size * world.size
    if not size:
        raise UsageError(
            f"{images} training images and a batch of {batch_size} for {world.size} processes:"
            " each process needs an image a step"
        )
    return size


def train_heads(
    groups: Sequence[LearningHeads],
    stream: TrainingStream,
    extractor: FeatureExtractor,
    folder: Path,
    identity: str,
    world: World,
    stop: StopRequest,
    advance: Callable[[int], None],
) -> None:
    """Train groups of heads to the last step, from the newest checkpoint in ``folder`` if there is one.

    A checkpoint is saved after each epoch. ``identity``: a text that is equal for equal probes. Raises UsageError if the
    checkpoint belongs to another probe, Interrupted (after a checkpoint) if a signal requested a stop, DensefeatError if the
    ranks see different images, or none can be read.
    """
    if len(set(world.gather_objects(identity))) > 1:
        raise DensefeatError("the ranks do not see the same images or labels: check that all can read them")
    _resume(groups, folder, identity, world)
    start = groups[0].step
    advance(start * stream.sampler.batch_size)
    poll_every = _GPU_POLL_STEPS if world.device.type == "cuda" else 1
    steps_with_images = start
    for step, (x, rows) in enumerate(stream.parts(start), start + 1):
        known = rows >= 0
        steps_with_images += int(known.any())
        features = extractor.forward(x[known]) if known.any() else {}
        for heads in groups:
            heads.learn(features, stream.targets[rows[known]], stream.sampler.batch_size, stream.steps, world)
        advance(stream.sampler.batch_size)
        stop_signal = 0
        if step % poll_every == 0:
            stop_signal = int(world.max([float(stop.signal or 0)])[0])
        if world.first and (stop_signal or step % stream.sampler.steps_per_epoch == 0):
            states = [heads.state_dict() for heads in groups]
            save_checkpoint(folder, {"step": step, _GROUPS: states, _IDENTITY: identity})
        if stop_signal:
            raise Interrupted(f"stopped after step {step}; the same command resumes there", 128 + stop_signal)
    if not world.max([float(steps_with_images)])[0]:
        key, reason = min(stream.images.failures)
        raise DensefeatError(f"none of the training images can be read, the first: {printable_key(key)}: {reason}")


def _resume(groups: Sequence[LearningHeads], folder: Path, identity: str, world: World) -> None:
    path, _ = newest_checkpoint(folder) if world.first else (None, [])
    name = world.broadcast(path.name if path else None)
    if name is None:
        return

    def restore(saved: dict[str, Any]) -> None:
        if saved[_IDENTITY] != identity:
            raise UsageError(f"output {str(folder.parent)!r} holds another unfinished probe: choose another --out")
        for heads, state in zip(groups, saved[_GROUPS], strict=True):
            heads.load_state_dict(state)

    restore_checkpoint(folder / name, restore)
