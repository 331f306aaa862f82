"""The images that a run trains on, and those that it is evaluated on."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from densefeat.errors import UsageError
from densefeat.images import PHOTOGRAPHS, ChannelStats, Preprocessing
from densefeat.labels import Task
from densefeat.training.device_data import DeviceImages, Failures, MicroBatch, decode_all
from densefeat.training.labelled import EncodedImages, LabelledImages, open_labelled
from densefeat.training.pixels import make_pixel_rule, measure_training_images, read_recipe_stats
from densefeat.training.recipe import DATA, Recipe, Run
from densefeat.training.sampling import Sampler, micro_batch_slices, split_off
from densefeat.training.worker_data import ImageDataset, WorkerImages
from densefeat.training.world import World

MAX_GROUP = 20_000  # images in a row group


@dataclass(frozen=True)
class Split:
    """Images to evaluate on, and the positions of this rank's share of them."""

    images: DeviceImages | WorkerImages
    positions: np.ndarray

    def batches(self) -> Iterator[MicroBatch]:
        return self.images.eval_batches(self.positions)


@dataclass(frozen=True)
class TrainingData:
    """Training images, and ``val`` to select weights by: images held out of them, or those at the recipe's ``val``.

    ``test``: the images at the recipe's ``val`` if ``val`` was held out.
    """

    labelled: LabelledImages
    images: DeviceImages | WorkerImages
    sampler: Sampler
    slices: list[slice]  # of this rank's micro-batches in a batch
    augment: str
    preprocessing: Preprocessing
    val: Split
    test: Split | None
    failures: Failures  # of images decoded before the run
    task: Task = "single"
    notes: list[str] = field(default_factory=list)  # remarks about labels for the user

    def batches(self, start: int, stop: int) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of each step."""
        return self.images.train_batches(self.sampler, self.slices, self.augment, start, stop)

    def list_failures(self) -> Failures:
        """List the images that this rank could not read up to now, in the order of their keys."""
        splits = [self.val, *([self.test] if self.test else [])]
        loaders = [self.images, *(split.images for split in splits)]
        return sorted(set(self.failures).union(*(loader.failures for loader in loaders if isinstance(loader, WorkerImages))))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the training images' positions and labels, and of the class names, in hexadecimal."""
        digest = hashlib.sha256(self.sampler.positions.astype("<i8").tobytes())
        labels = self.train_labels()
        digest.update(np.ascontiguousarray(labels, "<i8" if labels.ndim == 1 else "i1").data)
        digest.update(json.dumps(self.labelled.classes).encode())
        return digest.hexdigest()

    def train_labels(self) -> np.ndarray:
        """Return the labels of the training images: int64 ``(n,)``, or int8 ``(n, C)`` for several labels."""
        return self.labelled.labels[self.sampler.positions]

    def keys(self, step: int) -> list[str]:
        """Return the keys of the images of a step's batch over all ranks."""
        return [self.labelled.key(int(position)) for position in self.sampler.batch(step)]


def open_data(recipe: Recipe, world: World, advance: Callable[[int], None] = lambda _: None) -> TrainingData:
    """Open the training and validation images of a recipe; ``advance`` is called with the number of images decoded.

    Raises UsageError where they are missing, of no known layout, or have other classes than the recipe's data.
    """
    facts = DATA[recipe.data]
    train = open_labelled(recipe.train, train=True, label_column=recipe.label_column)
    if facts.num_classes not in (None, len(train.classes)):
        raise UsageError(f"data {recipe.data!r} has {facts.num_classes} classes, {recipe.train!r} has {len(train.classes)}")
    val = open_labelled(
        recipe.val, train=False, label_column=recipe.label_column, classes=train.classes, splits=("val", "test")
    )  # fmt: skip
    if val.classes != train.classes:
        raise UsageError(f"{recipe.val!r}: its classes are not those of {recipe.train!r}")
    size = max(recipe.sizes.values())
    rule = replace(make_pixel_rule(recipe) or PHOTOGRAPHS, in_chans=recipe.in_chans or 3)
    stats = read_recipe_stats(recipe, rule.in_chans) or ChannelStats(facts.mean, facts.std)
    rule = stats.complete_rule(rule)
    preprocessing = Preprocessing(size, recipe.crop_pct, "center", "bicubic", stats.mean, stats.std, rule)
    preprocessing = measure_training_images(recipe, preprocessing, train, advance)

    failures: Failures = []
    train_images, train_positions = load_images(recipe, train, preprocessing, world, failures, advance)
    val_images, val_positions = load_images(recipe, val, preprocessing, world, failures, advance)
    if recipe.holdout >= len(train_positions):
        raise UsageError(f"holdout {recipe.holdout}: there are {len(train_positions)} training images")
    train_positions, held_out = split_off(train_positions, recipe.holdout, recipe.seed)
    share = slice(world.rank, None, world.size)  # each rank evaluates its own
    test = Split(val_images, val_positions[share])
    sampler = Sampler(train_positions, row_groups(recipe, train), recipe.batch_size, recipe.seed)
    slices = micro_batch_slices(recipe.batch_size, recipe.accumulation, world.rank, world.size)
    val_split, test_split = (Split(train_images, held_out[share]), test) if recipe.holdout else (test, None)
    return TrainingData(
        train, train_images, sampler, slices, recipe.augment, preprocessing, val_split, test_split, failures
    )  # fmt: skip


def row_groups(recipe: Run, train: LabelledImages) -> np.ndarray | None:
    """Return the sizes of the groups of images that are read together, if any. UsageError where one is too large."""
    groups = train.groups if isinstance(train, EncodedImages) and recipe.loader == "workers" else None
    if groups is not None and groups.max() > MAX_GROUP:
        raise UsageError(
            f"{recipe.train!r}: row groups of {groups.max():,} images, which every worker would hold in memory: write it with "
            f"row_group_size=1000 (at most {MAX_GROUP:,} are accepted)"
        )
    return groups


def load_images(
    recipe: Run,
    labelled: LabelledImages,
    preprocessing: Preprocessing,
    world: World,
    failures: Failures,
    advance: Callable[[int], None],
) -> tuple[DeviceImages | WorkerImages, np.ndarray]:
    """Return images in the recipe's loader, and the positions of those that have a label.

    ``loader: device`` decodes all of them here: those that cannot be read are added to ``failures`` and have no position.
    """
    dtype = torch.float64 if recipe.precision == "float64" else torch.float32  # of the network's input
    if recipe.loader == "device":
        images, labels, failed = decode_all(labelled, preprocessing, advance)
        failures += failed
        return DeviceImages.from_arrays(images, labels, preprocessing, world.device, dtype), labelled_positions(labels)
    if not isinstance(labelled, EncodedImages):
        raise UsageError(f"loader 'workers': {labelled.name} holds decoded images: use loader=device")
    encoded = ImageDataset(labelled, preprocessing, recipe.augment, recipe.seed)
    loader = WorkerImages(encoded, preprocessing, recipe.workers, world.device, dtype, set())
    return loader, labelled_positions(labelled.labels)


def labelled_positions(labels: np.ndarray) -> np.ndarray:
    """Return the positions of the images with a label: int64."""
    return np.flatnonzero(labels >= 0 if labels.ndim == 1 else labels[:, 0] >= 0)
