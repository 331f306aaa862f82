"""The training of parallel heads on augmented images: a batch passes the frozen network once a step."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.data import create_transform

from densefeat.base import Interrupted, StopRequest
from densefeat.errors import DensefeatError, UsageError
from densefeat.features import FeatureExtractor
from densefeat.images import RandomAccess, Source, printable_key
from densefeat.labels import Targets
from densefeat.probe import ALL
from densefeat.sgd_probe.parallel_heads import ParallelHeads
from densefeat.training import (
    MAX_GROUP,
    EncodedImages,
    ImageDataset,
    MicroBatch,
    Sampler,
    WorkerImages,
    World,
    load_checkpoint,
    micro_batch_slices,
    newest_checkpoint,
    save_checkpoint,
)

_IDENTITY = "asked"  # key in a checkpoint
_GPU_POLL_STEPS = 10  # steps between checks for a stop request: each waits for the GPU


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
        raise UsageError("protocol 'sgd' reads images by position: give a folder, a list, Parquet files or tar files")
    places = {paths[row]: int(row) for row in np.flatnonzero(train)}
    labels = np.array([places.pop(printable_key(os.fsdecode(key)), -1) for key in source.keys().to_pylist()], np.int64)
    if places:
        raise DensefeatError(f"{len(places):,} images are missing now, {next(iter(places))!r} first: extract them again")
    return EncodedImages(source, labels, [])


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
    heads: ParallelHeads,
    stream: TrainingStream,
    extractor: FeatureExtractor,
    folder: Path,
    identity: str,
    world: World,
    stop: StopRequest,
    advance: Callable[[int], None],
) -> None:
    """Train to the last step, from the newest checkpoint in ``folder`` if there is one; save one after each epoch.

    ``identity``: a text that is equal for equal probes. Raises UsageError if the checkpoint belongs to another probe,
    Interrupted (after a checkpoint) if a signal requested a stop, DensefeatError if the ranks see different images, or none can
    be read.
    """
    if len(set(world.gather_objects(identity))) > 1:
        raise DensefeatError("the ranks do not see the same images or labels: check that all can read them")
    _resume(heads, folder, identity, world)
    advance(heads.step * stream.sampler.batch_size)
    poll_every = _GPU_POLL_STEPS if world.device.type == "cuda" else 1
    steps_with_images = heads.step
    for x, rows in stream.parts(heads.step):
        known = rows >= 0
        steps_with_images += int(known.any())
        features = _select_features(extractor.forward(x[known]), heads) if known.any() else _empty_features(heads)
        heads.learn(features, stream.targets[rows[known]], stream.sampler.batch_size, stream.steps, world)
        advance(stream.sampler.batch_size)
        stop_signal = 0
        if heads.step % poll_every == 0:
            stop_signal = int(world.max([float(stop.signal or 0)])[0])
        if world.first and (stop_signal or heads.step % stream.sampler.steps_per_epoch == 0):
            save_checkpoint(folder, heads.state_dict() | {_IDENTITY: identity})
        if stop_signal:
            raise Interrupted(f"stopped after step {heads.step}; the same command resumes there", 128 + stop_signal)
    if not world.max([float(steps_with_images)])[0]:
        key, reason = min(stream.images.failures)
        raise DensefeatError(f"none of the training images can be read, the first: {printable_key(key)}: {reason}")


def _resume(heads: ParallelHeads, folder: Path, identity: str, world: World) -> None:
    path, _ = newest_checkpoint(folder) if world.first else (None, [])
    name = world.broadcast(path.name if path else None)
    if name is None:
        return
    saved = load_checkpoint(folder / name)
    if saved[_IDENTITY] != identity:
        raise UsageError(f"output {str(folder.parent)!r} holds another unfinished probe: choose another --out")
    heads.load_state_dict(saved)


def _select_features(features: dict[str, torch.Tensor], heads: ParallelHeads) -> dict[str, torch.Tensor]:
    """Select the features that heads are for, and add those of all columns side by side if there are heads for them."""
    own = {name: features[name] for name in heads.weights if name != ALL}
    return own | ({ALL: torch.cat(list(own.values()), 1)} if ALL in heads.weights else {})


def _empty_features(heads: ParallelHeads) -> dict[str, torch.Tensor]:
    return {name: weight.new_zeros(0, weight.shape[2] - 1) for name, weight in heads.weights.items()}
