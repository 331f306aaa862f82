"""Parallel heads learn from augmented images that pass a frozen network once a step."""

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
from densefeat.images import Indexed, Saved, Source, Tables, printable_key
from densefeat.labels import Targets
from densefeat.probe import ALL
from densefeat.sgd_probe.parallel_heads import ParallelHeads
from densefeat.training import (
    MAX_GROUP,
    Encoded,
    ImageDataset,
    MicroBatch,
    Sampler,
    WorkerImages,
    World,
    group_sizes,
    load_checkpoint,
    micro_batch_slices,
    newest_checkpoint,
    save_checkpoint,
)

_POLL_GPU = 10  # steps between looks at whether to stop


@dataclass(frozen=True)
class TrainingStream:
    """What the heads learn from. ``targets``: int64 ``(n,)`` or bool ``(n, K)``; the labels of a part are places in it."""

    images: WorkerImages
    sampler: Sampler
    part: slice
    targets: torch.Tensor
    steps: int

    def parts(self, start: int) -> Iterator[MicroBatch]:
        """This rank's share of each batch from step ``start`` on."""
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
    """``targets``, ``paths``: of n images; ``train``: bool ``(n,)``, those to learn from; ``batch_size``: of all ranks.

    Augmented as in DINOv2's linear evaluation: a random part of 8 % to 100 % of the area, mirrored or not. Raises UsageError
    for an input that cannot be read by position, or has fewer training images than ranks.
    """
    encoded = _match_images(source, paths, train)
    if encoded.groups is not None and encoded.groups.max() > MAX_GROUP:
        raise UsageError(
            f"row groups of {encoded.groups.max():,} images, at most {MAX_GROUP:,}: write with row_group_size=1000"
        )
    size = extractor.preprocessing.size
    images = ImageDataset(encoded, extractor.preprocessing, "none", seed)
    # the protocol's own: the recipes' crops are milder, or come with changes of colour
    images.augmentation = create_transform(
        (3, size, size), is_training=True, color_jitter=0.0, interpolation="bicubic", normalize=False
    )
    loader = WorkerImages(images, extractor.preprocessing, workers, world.device, torch.float32, set())
    sampler = Sampler(np.flatnonzero(encoded.labels >= 0), encoded.groups, batch_size, seed)
    (part,) = micro_batch_slices(batch_size, 1, world.rank, world.size)
    values = torch.from_numpy(targets.values).to(world.device)
    return TrainingStream(loader, sampler, part, values, epochs * sampler.steps_per_epoch)


def _match_images(source: Source, paths: list[str], train: np.ndarray) -> Encoded:
    """Labels are places in ``paths``; -1 for images that are not to be learnt from."""
    if not isinstance(source, Indexed | Tables | Saved):
        raise UsageError("protocol 'sgd' reads images by position: give a folder, a list, Parquet files or tar files")
    groups = np.array(group_sizes(source)) if isinstance(source, Tables) else None
    places = {paths[row]: int(row) for row in np.flatnonzero(train)}
    labels = np.array([places.pop(printable_key(os.fsdecode(key)), -1) for key in source.keys().to_pylist()], np.int64)
    if places:
        raise DensefeatError(f"{len(places):,} images are not there any more, {next(iter(places))!r} first: extract them again")
    return Encoded(source, labels, [], groups)


def fit_batch_size(batch_size: int, images: int, world: World) -> int:
    """``batch_size``, or less where there are fewer images: a multiple of the ranks. UsageError where there are too few."""
    size = min(batch_size, images) // world.size * world.size
    if not size:
        raise UsageError(f"{images} training images and a batch of {batch_size} for {world.size} processes: give more")
    return size


def train_heads(
    heads: ParallelHeads,
    lesson: TrainingStream,
    extractor: FeatureExtractor,
    folder: Path,
    asked: str,
    world: World,
    stop: StopRequest,
    advance: Callable[[int], None],
) -> None:
    """From the newest checkpoint in ``folder`` (or the start) to the last step; a checkpoint after each epoch.

    ``asked``: what the run was to be, in one text. Raises UsageError where the checkpoint is of another run, Interrupted (after
    a checkpoint) where a signal asked to stop, DensefeatError where the ranks see other images or none can be read.
    """
    if len(set(world.gather_objects(asked))) > 1:
        raise DensefeatError("the ranks do not see the same images or labels: check that all can read them")
    _resume(heads, folder, asked, world)
    advance(heads.step * lesson.sampler.batch_size)
    poll_every = _POLL_GPU if world.device.type == "cuda" else 1
    read = heads.step  # steps with an image that can be read
    for x, rows in lesson.parts(heads.step):
        known = rows >= 0
        read += int(known.any())
        features = _select_features(extractor.forward(x[known]), heads) if known.any() else _empty_features(heads)
        heads.learn(features, lesson.targets[rows[known]], lesson.sampler.batch_size, lesson.steps, world)
        advance(lesson.sampler.batch_size)
        asked_to = 0
        if heads.step % poll_every == 0:
            asked_to = int(world.max([float(stop.signal or 0)])[0])
        if world.first and (asked_to or heads.step % lesson.sampler.steps_per_epoch == 0):
            save_checkpoint(folder, heads.state_dict() | {"asked": asked})
        if asked_to:
            raise Interrupted(f"stopped after step {heads.step}; the same command goes on from there", 128 + asked_to)
    if not world.max([float(read)])[0]:
        key, reason = min(lesson.images.failures)
        raise DensefeatError(f"none of the training images can be read, the first: {printable_key(key)}: {reason}")


def _resume(heads: ParallelHeads, folder: Path, asked: str, world: World) -> None:
    path, _ = newest_checkpoint(folder) if world.first else (None, [])
    name = world.broadcast(path.name if path else None)
    if name is None:
        return
    saved = load_checkpoint(folder / name)
    if saved["asked"] != asked:
        raise UsageError(f"output {str(folder.parent)!r} holds the beginnings of another probe: name another --out")
    heads.load_state_dict(saved)


def _select_features(features: dict[str, torch.Tensor], heads: ParallelHeads) -> dict[str, torch.Tensor]:
    """Those that there are heads of; the candidate of all side by side, too."""
    own = {name: features[name] for name in heads.weights if name != ALL}
    return own | ({ALL: torch.cat(list(own.values()), 1)} if ALL in heads.weights else {})


def _empty_features(heads: ParallelHeads) -> dict[str, torch.Tensor]:
    return {name: weight.new_zeros(0, weight.shape[2] - 1) for name, weight in heads.weights.items()}
