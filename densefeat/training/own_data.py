"""What fine-tuning trains on: people's own images, in a folder of classes or any input with labels."""

import os
from collections.abc import Callable

import numpy as np

from densefeat.errors import UsageError
from densefeat.heads.splits import held_out
from densefeat.heads.targets import Targets, Task
from densefeat.images.transforms import Preprocessing
from densefeat.training.data import Split, TrainingData, groups_of, prepared
from densefeat.training.device_data import Failures
from densefeat.training.finetune_recipe import FineTuning, mixes
from densefeat.training.labelled import Encoded, open_labelled
from densefeat.training.sampling import Sampler, rank_parts
from densefeat.training.world import World


def open_own_data(
    recipe: FineTuning, preprocessing: Preprocessing, world: World, advance: Callable[[int], None] = lambda _: None
) -> TrainingData:
    """Training and validation images of fine-tuning, prepared as the weights ask; ``advance``: told of images decoded.

    Without validation images of their own, ``val_share`` of the training images are held out, class by class. A batch is no
    larger than the training images are many. Raises UsageError where images are missing, or of no known layout.
    """
    place, val_place = train_and_val(recipe)
    train = open_labelled(place, train=True, label_column=recipe.label_column, task=recipe.task)
    task: Task = train.task if isinstance(train, Encoded) else "single"
    if len(train.classes) < 2 and task == "single":
        raise UsageError(f"{place!r}: all images are {train.classes[0]!r}: there is nothing to tell apart")
    failures: Failures = []
    images, positions = prepared(recipe, train, preprocessing, world, failures, advance)
    mine = slice(world.rank, None, world.size)
    if val_place is None:
        held = held_out(Targets(task, tuple(train.classes), train.labels[positions]), recipe.val_share, recipe.seed)
        val, positions = Split(images, positions[held][mine]), positions[~held]
    else:
        column = recipe.label_column
        labelled = open_labelled(val_place, train=False, label_column=column, classes=train.classes, task=task)
        val_images, val_positions = prepared(recipe, labelled, preprocessing, world, failures, advance)
        val = Split(val_images, val_positions[mine])
    size = batch_that_fits(recipe, len(positions), world)
    chances = balanced_chances(train.labels[positions]) if recipe.sampling == "balanced" else None
    sampler = Sampler(positions, groups_of(recipe, train), size, recipe.seed, chances)
    parts = rank_parts(size, recipe.accumulation, world.rank, world.size)
    return TrainingData(train, images, sampler, parts, recipe.augment, preprocessing, val, None, failures, task)


def train_and_val(recipe: FineTuning) -> tuple[str, str | None]:
    """Where the images are: in ``train/`` and ``val/`` of a folder that has them."""
    train, val = os.path.join(recipe.train, "train"), os.path.join(recipe.train, "val")
    if recipe.val is not None or not os.path.isdir(train):
        return recipe.train, recipe.val
    others = [entry.name for entry in os.scandir(recipe.train) if entry.is_dir() and entry.name not in ("train", "val", "test")]
    if others:  # classes beside one that is called train
        return recipe.train, None
    return train, val if os.path.isdir(val) else None


def batch_that_fits(recipe: FineTuning, images: int, world: World) -> int:
    """The recipe's, or what few images can be shared out into. UsageError where they are too few for that."""
    unit = world.size * recipe.accumulation * (2 if mixes(recipe) else 1)
    if images >= recipe.batch_size:
        return recipe.batch_size
    if images < unit:
        raise UsageError(f"{recipe.train!r}: {images} training images, and every step needs {unit}: give more")
    return images // unit * unit


def balanced_chances(labels: np.ndarray) -> np.ndarray:
    """float64 ``(n,)``, in proportion to the rarity of a class; of several labels, of an image's rarest."""
    if labels.ndim == 1:
        rarity = 1 / np.bincount(labels)[labels]
    else:
        counts = (labels > 0).sum(0)
        with_label = np.where(labels > 0, 1 / np.maximum(counts, 1), 0).max(1)
        rarity = np.where(with_label > 0, with_label, 1 / max(1, int((with_label == 0).sum())))
    return rarity / rarity.sum()
