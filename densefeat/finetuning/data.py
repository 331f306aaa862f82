"""What fine-tuning trains on: people's own images, in a folder of classes or any input with labels."""

import os
from collections.abc import Callable

import numpy as np

from densefeat.errors import UsageError
from densefeat.finetuning.recipe import FineTuning, mixes
from densefeat.images import Preprocessing
from densefeat.labels import Targets, Task, held_out, task_of
from densefeat.training import (
    Encoded,
    Failures,
    Labelled,
    Sampler,
    Split,
    TrainingData,
    World,
    groups_of,
    open_labelled,
    prepared,
    rank_parts,
)

_VAL_FOLDERS = ("val", "valid", "validation")


def open_own_data(
    recipe: FineTuning, preprocessing: Preprocessing, world: World, advance: Callable[[int], None] = lambda _: None
) -> TrainingData:
    """Training and validation images of fine-tuning, prepared as the weights ask; ``advance``: told of images decoded.

    Without validation images of their own, ``val_share`` of the training images are held out, class by class. A batch is no
    larger than the training images are many. Raises UsageError where images are missing, or of no known layout.
    """
    place, val_place = _train_and_val(recipe)
    train = open_labelled(place, train=True, label_column=recipe.label_column, task=recipe.task)
    task: Task = train.task if isinstance(train, Encoded) else "single"
    _check_labels(train, place, recipe.task)
    failures: Failures = []
    images, positions = prepared(recipe, train, preprocessing, world, failures, advance)
    notes = _notes_of(train, place)
    mine = slice(world.rank, None, world.size)
    if val_place is None:
        held = held_out(Targets(task, tuple(train.classes), train.labels[positions]), recipe.val_share, recipe.seed)
        val, positions = Split(images, positions[held][mine]), positions[~held]
    else:
        column = recipe.label_column
        labelled = open_labelled(val_place, train=False, label_column=column, classes=train.classes, task=task)
        val_images, val_positions = prepared(recipe, labelled, preprocessing, world, failures, advance)
        val = Split(val_images, val_positions[mine])
        notes += [f"{val_place!r}: {note}" for note in _notes_of(labelled, val_place)]
    size = _batch_that_fits(recipe, len(positions), world)
    chances = _balanced_chances(train.labels[positions]) if recipe.sampling == "balanced" else None
    sampler = Sampler(positions, groups_of(recipe, train), size, recipe.seed, chances)
    parts = rank_parts(size, recipe.accumulation, world.rank, world.size)
    return TrainingData(train, images, sampler, parts, recipe.augment, preprocessing, val, None, failures, task, notes)


def _check_labels(labelled: Labelled, place: str, task: str) -> None:
    """UsageError for one class alone, and for numbers that are no names of classes."""
    classes = labelled.classes
    if len(classes) < 2 and getattr(labelled, "task", "single") == "single":
        raise UsageError(f"{place!r}: all images are {classes[0]!r}: there is nothing to tell apart")
    if task == "auto" and task_of(classes)[0] == "regression":
        raise UsageError(
            f"{place!r}: its labels are numbers ({', '.join(classes[:3])}, …), which only probes predict: densefeat probe; "
            "or task=single, where they are names of classes"
        )


def _notes_of(labelled: Labelled, place: str) -> list[str]:
    """What people should know of their labels: images without one, and classes of one image, or of none."""
    labels, notes = labelled.labels, []
    unlabelled = np.flatnonzero(labels < 0 if labels.ndim == 1 else labels[:, 0] < 0)
    if len(unlabelled):
        first = labelled.key(int(unlabelled[0]))
        notes.append(f"{len(unlabelled):,} images of {place!r} have no label and are left out, {first!r} first")
    counts = np.bincount(labels[labels >= 0], minlength=len(labelled.classes)) if labels.ndim == 1 else (labels > 0).sum(0)
    for count, told in ((0, "no image"), (1, "one image")):
        if len(few := np.flatnonzero(counts == count)):
            notes.append(f"{len(few):,} classes have {told}, {labelled.classes[few[0]]!r} first")
    return notes


def _train_and_val(recipe: FineTuning) -> tuple[str, str | None]:
    """Where the images are: in ``train/`` and ``val/`` (or ``valid/``, ``validation/``) of a folder that has them.

    A class may be called train: images lie in it then, and no folders. UsageError where there are both kinds.
    """
    train = os.path.join(recipe.train, "train")
    if not (os.path.isdir(train) and _folders_in(train)):
        return recipe.train, recipe.val
    found = [name for name in _VAL_FOLDERS if os.path.isdir(os.path.join(recipe.train, name))]
    if len(found) > 1:
        raise UsageError(f"{recipe.train!r} holds {' and '.join(found)}: name one of them with --val")
    if others := _folders_in(recipe.train) - {"train", "test", *_VAL_FOLDERS}:
        told = f"{recipe.train!r} holds train/ with folders in it, and {min(others)!r} beside it"
        raise UsageError(f"{told}: give {train!r} (and --val), or take one of them away")
    return train, recipe.val or (os.path.join(recipe.train, found[0]) if found else None)


def _folders_in(folder: str) -> set[str]:
    """Names, but for hidden ones and those that operating systems leave."""
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] not in "._@"}


def _batch_that_fits(recipe: FineTuning, images: int, world: World) -> int:
    """The recipe's, or what few images can be shared out into. UsageError where they are too few for that."""
    unit = world.size * recipe.accumulation * (2 if mixes(recipe) else 1)
    if images >= recipe.batch_size:
        if mixes(recipe) and recipe.batch_size % unit:
            raise UsageError(f"batch_size {recipe.batch_size}: images are mixed in pairs: give a multiple of {unit}")
        return recipe.batch_size
    if images < unit:
        raise UsageError(f"{recipe.train!r}: {images} training images, and every step needs {unit}: give more")
    return images // unit * unit


def _balanced_chances(labels: np.ndarray) -> np.ndarray:
    """float64 ``(n,)``, in proportion to the rarity of a class; of several labels, of an image's rarest."""
    if labels.ndim == 1:
        rarity = 1 / np.bincount(labels)[labels]
    else:
        counts = (labels > 0).sum(0)
        with_label = np.where(labels > 0, 1 / np.maximum(counts, 1), 0).max(1)
        rarity = np.where(with_label > 0, with_label, 1 / max(1, int((with_label == 0).sum())))
    return rarity / rarity.sum()
