"""The images of fine-tuning: a folder of classes, or any input with labels."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.errors import DecodeError, DensefeatError, UnknownRange, UsageError
from densefeat.finetuning.recipe import FineTuning
from densefeat.images import (
    ImageFiles,
    ImageReader,
    PixelRule,
    Preprocessing,
    decode_pixels,
    is_image_folder,
    list_splits,
    name_image,
    open_for_training,
)
from densefeat.labels import Targets, describe_missing, hold_out, infer_task
from densefeat.training import (
    EncodedImages,
    Failures,
    LabelledImages,
    Sampler,
    Split,
    TrainingData,
    World,
    load_images,
    measure_training_images,
    micro_batch_slices,
    open_labelled,
    row_groups,
)

_TRIES = 100  # images of a class that are read before it counts as unreadable


def open_finetuning_data(
    recipe: FineTuning, preprocessing: Preprocessing, world: World, advance: Callable[[int], None] = lambda _: None
) -> TrainingData:
    """Open the training, validation and test images; ``advance`` is called with the number of images decoded.

    Without validation images at ``val``, ``val_share`` of each class's training images is held out. A batch is at most as
    large as the training set. Raises UsageError where images are missing or have no known layout, DensefeatError where no
    image of a class can be read.
    """
    places = _find_places(recipe)
    column, base = recipe.label_column, recipe.base
    train = open_labelled(places.train, train=True, label_column=column, task=recipe.task, base=base)
    task = train.task
    _check_labels(train, places.train, recipe.task)
    preprocessing = measure_training_images(recipe, preprocessing, train, advance)
    failures: Failures = []
    images, positions = load_images(recipe, train, preprocessing, world, failures, advance)
    _check_readable(train, places.train, positions, failures, preprocessing.pixels)
    notes = [*describe_missing(train.classes), *_describe_labels(train, places.train)]
    share = slice(world.rank, None, world.size)  # each rank evaluates its own

    def open_split(place: str, splits: Sequence[str]) -> Split:
        labelled = open_labelled(
            place, train=False, label_column=column, classes=train.classes, task=task, base=base, splits=splits
        )
        split_images, split_positions = load_images(recipe, labelled, preprocessing, world, failures, advance)
        notes.extend(f"{place!r}: {note}" for note in _describe_labels(labelled, place))
        notes.extend(_describe_leaks(recipe, places.train, place))
        return Split(split_images, split_positions[share])

    if places.val is None:
        groups = None if recipe.group_column is None else _number_groups(_read_groups(recipe, places.train))[positions]
        targets = Targets(task, tuple(train.classes), train.labels[positions])
        held = hold_out(targets, recipe.val_share, recipe.seed, groups)
        val, positions = Split(images, positions[held][share]), positions[~held]
    else:
        val = open_split(places.val, ("val", "test"))
    test = None if places.test is None else open_split(places.test, ("test", "val"))
    size = _fit_batch_size(recipe, len(positions), world)
    chances = _balanced_chances(train.labels[positions]) if recipe.sampling == "balanced" else None
    sampler = Sampler(positions, row_groups(recipe, train), size, recipe.seed, chances)
    slices = micro_batch_slices(size, recipe.accumulation, world.rank, world.size)
    return TrainingData(train, images, sampler, slices, recipe.augment, preprocessing, val, test, failures, task, notes)


def _read_groups(recipe: FineTuning, place: str) -> pa.LargeStringArray:
    """Read the group of each image, null where it is in none. Raises UsageError for an input without columns."""
    if is_image_folder(place):
        raise UsageError(
            f"group_column {recipe.group_column!r}: {place!r} is a folder: give a list of paths, labels and groups"
        )
    return open_for_training(place, recipe.group_column, recipe.base).label_values()


def _number_groups(names: pa.LargeStringArray) -> np.ndarray:
    """Number the groups, int64 ``(n,)``; an image without one is a group of its own."""
    codes = names.dictionary_encode().indices
    alone = pa.array(np.arange(len(names)) + len(names), pa.int64())
    return pc.coalesce(codes.cast(pa.int64()), alone).to_numpy(zero_copy_only=False)


def _describe_leaks(recipe: FineTuning, train: str, place: str) -> list[str]:
    """Return a remark on groups that are in the training images and in others, if there are any."""
    if recipe.group_column is None:
        return []
    there, here = (set(_read_groups(recipe, where).drop_null().to_pylist()) for where in (train, place))
    if not (both := there & here):
        return []
    return [
        f"{len(both):,} groups of {place!r} are in the training images, too, such as {min(both)!r}: figures will be too good"
    ]


def _check_readable(labelled: LabelledImages, place: str, positions: np.ndarray, failures: Failures, rule: PixelRule) -> None:
    """Raise DensefeatError where no image of a class can be read.

    ``positions``: of the images that may be readable; ``failures``: of those that are known not to be.
    """
    if not isinstance(labelled, EncodedImages):
        return
    reader = labelled.reader() if labelled.groups is None else None  # to read one of a group is to read all of it
    reasons = dict(failures)

    def find_failure(code: int) -> tuple[str, str] | None:
        members = np.flatnonzero(labelled.labels == code if labelled.labels.ndim == 1 else labelled.labels[:, code] > 0)
        left = members[np.isin(members, positions)]
        if len(members) and not len(left):
            key = labelled.key(int(members[0]))
            return key, reasons[key]
        return None if reader is None else _find_failure(labelled, reader, left, rule)

    with ThreadPoolExecutor() as pool:
        found = dict(zip(labelled.classes, pool.map(find_failure, range(len(labelled.classes))), strict=True))
    lost = {name: failure for name, failure in found.items() if failure is not None}
    if not lost:
        return
    key, reason = next(iter(lost.values()))
    advice = ""
    if isinstance(labelled.source, ImageFiles) and "No such file" in reason:
        slashes = ", with / between folders" if "\\" in key else ""
        advice = f"; a list's paths are relative to its folder, or to --base{slashes}"
    if len(lost) == len(np.unique(labelled.labels[labelled.labels >= 0])) and labelled.labels.ndim == 1:
        raise DensefeatError(f"{place!r}: none of its images can be read, the first: {key!r}: {reason}{advice}")
    names = ", ".join(map(repr, list(lost)[:3]))
    raise DensefeatError(
        f"{place!r}: no image of {names} can be read, the first: {key!r}: {reason}{advice}: repair or remove them"
    )


def _find_failure(
    labelled: EncodedImages, reader: ImageReader, positions: np.ndarray, rule: PixelRule
) -> tuple[str, str] | None:
    """Return key and reason of the first image if none of these can be read; None if one can, or there are many."""
    failures = []
    for position in positions[:_TRIES].tolist():
        try:
            decode_pixels(reader.read(position), rule=rule)
            return None
        except DecodeError as error:
            failures.append((labelled.key(position), str(error)))
        except UnknownRange as error:
            raise name_image(error, labelled.key(position)) from error
    return failures[0] if failures and len(positions) <= _TRIES else None


def _check_labels(labelled: LabelledImages, place: str, task: str) -> None:
    """Raise UsageError for a single class, and for numbers, which do not name classes."""
    classes = labelled.classes
    if len(classes) < 2 and labelled.task == "single":
        raise UsageError(f"{place!r}: all images are {classes[0]!r}: training needs two classes or more")
    if task == "auto" and infer_task(classes, folders=True)[0] == "regression":
        raise UsageError(
            f"{place!r}: its labels are numbers ({', '.join(classes[:3])}, …), which only probes predict: use densefeat probe, "
            "or give task=single if the numbers name classes"
        )


def _describe_labels(labelled: LabelledImages, place: str) -> list[str]:
    """Return remarks on images without a label, and on classes of one image or none."""
    labels, notes = labelled.labels, []
    repeats = labelled.repeats if isinstance(labelled, EncodedImages) else ()
    unlabelled = np.setdiff1d(np.flatnonzero(labels < 0 if labels.ndim == 1 else labels[:, 0] < 0), repeats)
    if len(repeats):
        notes.append(f"{len(repeats):,} lines of {place!r} repeat others")
    if len(unlabelled):
        first = labelled.key(int(unlabelled[0]))
        notes.append(f"{len(unlabelled):,} images of {place!r} have no label and are left out, the first: {first!r}")
    counts = np.bincount(labels[labels >= 0], minlength=len(labelled.classes)) if labels.ndim == 1 else (labels > 0).sum(0)
    for count, words in ((0, "no image"), (1, "one image")):
        if len(few := np.flatnonzero(counts == count)):
            notes.append(f"{len(few):,} classes have {words}, the first: {labelled.classes[few[0]]!r}")
    return notes


@dataclass(frozen=True)
class _Places:
    """Where the images of each split are; None: nowhere."""

    train: str
    val: str | None
    test: str | None


def _find_places(recipe: FineTuning) -> _Places:
    """Find the splits: what the recipe names, and for the rest the folders of splits that ``train`` holds, if it does."""
    splits = list_splits(recipe.train)
    if splits and "train" not in splits:
        names = ", ".join(map(repr, splits.values()))
        raise UsageError(
            f"{recipe.train!r} holds splits, but none to train on, only {names}: name the folder of training images"
        )
    return _Places(splits.get("train", recipe.train), recipe.val or splits.get("val"), recipe.test or splits.get("test"))


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
