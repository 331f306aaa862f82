"""The images of fine-tuning: a folder of classes, or any input with labels."""

import os
from collections.abc import Callable

import numpy as np

from densefeat.errors import UsageError
from densefeat.finetuning.recipe import FineTuning
from densefeat.images import Preprocessing
from densefeat.labels import Targets, hold_out, infer_task
from densefeat.training import (
    Failures,
    LabelledImages,
    Sampler,
    Split,
    TrainingData,
    World,
    load_images,
    micro_batch_slices,
    open_labelled,
    row_groups,
)

_VAL_FOLDERS = ("val", "valid", "validation")


def open_finetuning_data(
    recipe: FineTuning, preprocessing: Preprocessing, world: World, advance: Callable[[int], None] = lambda _: None
) -> TrainingData:
    """Open the training and validation images; ``advance`` is called with the number of images decoded.

    Without validation images at ``val``, ``val_share`` of each class's training images is held out. A batch is at most as
    large as the training set. Raises UsageError where images are missing or have no known layout.
    """
    place, val_place = _find_train_and_val(recipe)
    train = open_labelled(place, train=True, label_column=recipe.label_column, task=recipe.task)
    task = train.task
    _check_labels(train, place, recipe.task)
    failures: Failures = []
    images, positions = load_images(recipe, train, preprocessing, world, failures, advance)
    notes = _describe_labels(train, place)
    share = slice(world.rank, None, world.size)  # each rank evaluates its own
    if val_place is None:
        held = hold_out(Targets(task, tuple(train.classes), train.labels[positions]), recipe.val_share, recipe.seed)
        val, positions = Split(images, positions[held][share]), positions[~held]
    else:
        column = recipe.label_column
        labelled = open_labelled(val_place, train=False, label_column=column, classes=train.classes, task=task)
        val_images, val_positions = load_images(recipe, labelled, preprocessing, world, failures, advance)
        val = Split(val_images, val_positions[share])
        notes += [f"{val_place!r}: {note}" for note in _describe_labels(labelled, val_place)]
    size = _fit_batch_size(recipe, len(positions), world)
    chances = _balanced_chances(train.labels[positions]) if recipe.sampling == "balanced" else None
    sampler = Sampler(positions, row_groups(recipe, train), size, recipe.seed, chances)
    slices = micro_batch_slices(size, recipe.accumulation, world.rank, world.size)
    return TrainingData(train, images, sampler, slices, recipe.augment, preprocessing, val, None, failures, task, notes)


def _check_labels(labelled: LabelledImages, place: str, task: str) -> None:
    """Raise UsageError for a single class, and for numbers, which do not name classes."""
    classes = labelled.classes
    if len(classes) < 2 and labelled.task == "single":
        raise UsageError(f"{place!r}: all images are {classes[0]!r}: training needs two classes or more")
    if task == "auto" and infer_task(classes)[0] == "regression":
        raise UsageError(
            f"{place!r}: its labels are numbers ({', '.join(classes[:3])}, …), which only probes predict: use densefeat probe, "
            "or give task=single if the numbers name classes"
        )


def _describe_labels(labelled: LabelledImages, place: str) -> list[str]:
    """Return remarks on images without a label, and on classes of one image or none."""
    labels, notes = labelled.labels, []
    unlabelled = np.flatnonzero(labels < 0 if labels.ndim == 1 else labels[:, 0] < 0)
    if len(unlabelled):
        first = labelled.key(int(unlabelled[0]))
        notes.append(f"{len(unlabelled):,} images of {place!r} have no label and are left out, the first: {first!r}")
    counts = np.bincount(labels[labels >= 0], minlength=len(labelled.classes)) if labels.ndim == 1 else (labels > 0).sum(0)
    for count, words in ((0, "no image"), (1, "one image")):
        if len(few := np.flatnonzero(counts == count)):
            notes.append(f"{len(few):,} classes have {words}, the first: {labelled.classes[few[0]]!r}")
    return notes


def _find_train_and_val(recipe: FineTuning) -> tuple[str, str | None]:
    """Return where the images are: ``train/`` and ``val/`` (``valid/``, ``validation/``) of a folder that has them.

    A class may be named train: its folder then holds images, not folders. UsageError if the folder holds both.
    """
    train = os.path.join(recipe.train, "train")
    if not (os.path.isdir(train) and _list_folders(train)):
        return recipe.train, recipe.val
    val_folders = [name for name in _VAL_FOLDERS if os.path.isdir(os.path.join(recipe.train, name))]
    if len(val_folders) > 1:
        raise UsageError(f"{recipe.train!r} holds {' and '.join(val_folders)}: name one of them with --val")
    if others := _list_folders(recipe.train) - {"train", "test", *_VAL_FOLDERS}:
        problem = f"{recipe.train!r} holds train/ with folders in it, and {min(others)!r} beside it"
        raise UsageError(f"{problem}: give {train!r} (and --val), or remove one of them")
    return train, recipe.val or (os.path.join(recipe.train, val_folders[0]) if val_folders else None)


def _list_folders(folder: str) -> set[str]:
    """List the folders in a folder, except hidden ones and those that operating systems create."""
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] not in "._@"}


def _fit_batch_size(recipe: FineTuning, images: int, world: World) -> int:
    """Return the recipe's batch size, or less for few images. UsageError if they are too few for all micro-batches."""
    unit = world.size * recipe.accumulation * (2 if recipe.mixes_images else 1)
    if images >= recipe.batch_size:
        if recipe.mixes_images and recipe.batch_size % unit:
            raise UsageError(f"batch_size {recipe.batch_size}: images are mixed in pairs: give a multiple of {unit}")
        return recipe.batch_size
    if images < unit:
        raise UsageError(f"{recipe.train!r}: {images} training images, and every step needs {unit}: give more")
    return images // unit * unit


def _balanced_chances(labels: np.ndarray) -> np.ndarray:
    """Return the probability of each image, float64 ``(n,)``: the rarer its class (or its rarest label), the higher."""
    if labels.ndim == 1:
        rarity = 1 / np.bincount(labels)[labels]
    else:
        counts = (labels > 0).sum(0)
        with_label = np.where(labels > 0, 1 / np.maximum(counts, 1), 0).max(1)
        rarity = np.where(with_label > 0, with_label, 1 / max(1, int((with_label == 0).sum())))
    return rarity / rarity.sum()
