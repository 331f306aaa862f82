"""What a recipe trains on and is judged by."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from densefeat.errors import UsageError
from densefeat.finetuning import AnyRecipe
from densefeat.images import Preprocessing
from densefeat.labels import Task
from densefeat.training.device_data import DeviceImages, Failures, Part, decode_all
from densefeat.training.labelled import Encoded, Labelled, open_labelled
from densefeat.training.order import held_out
from densefeat.training.recipe import DATA, Recipe
from densefeat.training.sampling import Sampler, rank_parts
from densefeat.training.worker_data import Images, WorkerImages
from densefeat.training.world import World

MAX_GROUP = 20_000  # images
_DTYPES = {"float64": torch.float64}  # of the network and its input; all other precisions: float32


@dataclass(frozen=True)
class Split:
    """Images to evaluate on, and which of them are this rank's."""

    images: DeviceImages | WorkerImages
    positions: np.ndarray

    def batches(self) -> Iterator[Part]:
        return self.images.plain(self.positions)


@dataclass(frozen=True)
class TrainingData:
    """``val``: the held-out images, or those at the recipe's ``val``; ``test``: the latter where images are held out."""

    labelled: Labelled
    images: DeviceImages | WorkerImages
    sampler: Sampler
    parts: list[slice]
    augment: str
    preprocessing: Preprocessing
    val: Split
    test: Split | None
    failures: Failures  # of images that were decoded before the run
    task: Task = "single"
    notes: list[str] = field(default_factory=list)  # on labels, for people

    def batches(self, start: int, stop: int) -> Iterator[list[Part]]:
        """For each step the parts of this rank's share of the batch."""
        return self.images.batches(self.sampler, self.parts, self.augment, start, stop)

    def unread(self) -> Failures:
        """Of the images met so far, on this rank, in the order of their keys."""
        splits = [self.val, *([self.test] if self.test else [])]
        loaders = [self.images, *(split.images for split in splits)]
        met = set(self.failures).union(*(loader.failures for loader in loaders if isinstance(loader, WorkerImages)))
        return sorted(met)

    def fingerprint(self) -> str:
        """Of the training images' positions and labels, and the names of the classes: SHA-256 in hexadecimal."""
        digest = hashlib.sha256(self.sampler.positions.astype("<i8").tobytes())
        labels = self.train_labels()
        digest.update(np.ascontiguousarray(labels, "<i8" if labels.ndim == 1 else "i1").data)
        digest.update(json.dumps(self.labelled.classes).encode())
        return digest.hexdigest()

    def train_labels(self) -> np.ndarray:
        """Of the training images: int64 ``(n,)``, or int8 ``(n, C)``."""
        return self.labelled.labels[self.sampler.positions]

    def keys(self, step: int) -> list[str]:
        """Of the whole batch of a step."""
        return [self.labelled.key(int(position)) for position in self.sampler.batch(step)]


def open_data(recipe: Recipe, world: World, advance: Callable[[int], None] = lambda _: None) -> TrainingData:
    """Training and validation images as the recipe wants them; ``advance``: told of images decoded.

    Raises UsageError where they are missing, of no known layout, or not of as many classes as the recipe's data.
    """
    facts = DATA[recipe.data]
    train = open_labelled(recipe.train, train=True, label_column=recipe.label_column)
    if facts.num_classes not in (None, len(train.classes)):
        raise UsageError(f"data {recipe.data!r} has {facts.num_classes} classes, {recipe.train!r} has {len(train.classes)}")
    val = open_labelled(recipe.val, train=False, label_column=recipe.label_column, classes=train.classes)
    if val.classes != train.classes:
        raise UsageError(f"{recipe.val!r}: its classes are not those of {recipe.train!r}")
    size = recipe.image_size
    preprocessing = Preprocessing(size, recipe.crop_pct, "center", "bicubic", facts.mean, facts.std)

    failures: Failures = []
    train_images, train_positions = prepared(recipe, train, preprocessing, world, failures, advance)
    val_images, val_positions = prepared(recipe, val, preprocessing, world, failures, advance)
    if recipe.holdout >= len(train_positions):
        raise UsageError(f"holdout {recipe.holdout}: there are {len(train_positions)} training images")
    train_positions, kept = held_out(train_positions, recipe.holdout, recipe.seed)
    mine = slice(world.rank, None, world.size)
    test = Split(val_images, val_positions[mine])
    sampler = Sampler(train_positions, groups_of(recipe, train), recipe.batch_size, recipe.seed)
    parts = rank_parts(recipe.batch_size, recipe.accumulation, world.rank, world.size)
    own = Split(train_images, kept[mine]) if recipe.holdout else test
    return TrainingData(
        train, train_images, sampler, parts, recipe.augment, preprocessing, own, test if recipe.holdout else None, failures
    )


def groups_of(recipe: AnyRecipe, train: Labelled) -> np.ndarray | None:
    """Sizes of what is read together; UsageError where that is too much."""
    groups = train.groups if isinstance(train, Encoded) and recipe.loader == "workers" else None
    if groups is not None and groups.max() > MAX_GROUP:
        raise UsageError(
            f"{recipe.train!r}: row groups of {groups.max():,} images, which every worker would hold: write it with "
            f"row_group_size=1000 (at most {MAX_GROUP:,} are taken)"
        )
    return groups


def prepared(
    recipe: AnyRecipe,
    labelled: Labelled,
    preprocessing: Preprocessing,
    world: World,
    failures: Failures,
    advance: Callable[[int], None],
) -> tuple[DeviceImages | WorkerImages, np.ndarray]:
    """Images for the recipe's loader, and the positions of those that have a label (and, decoded now, can be read)."""
    dtype = _DTYPES.get(recipe.precision, torch.float32)
    if recipe.loader == "device":
        images, labels, failed = decode_all(labelled, preprocessing, advance)
        failures += failed
        return DeviceImages.of(images, labels, preprocessing, world.device, dtype), labelled_positions(labels)
    if not isinstance(labelled, Encoded):
        raise UsageError(f"loader 'workers': {labelled.name} holds decoded images, for loader=device")
    encoded = Images(labelled, preprocessing, recipe.augment, recipe.seed)  # evaluation does without augmentation anyway
    loader = WorkerImages(encoded, preprocessing, recipe.workers, world.device, dtype, set())
    return loader, labelled_positions(labelled.labels)


def labelled_positions(labels: np.ndarray) -> np.ndarray:
    """Of images with a label: int64."""
    return np.flatnonzero(labels >= 0 if labels.ndim == 1 else labels[:, 0] >= 0)
