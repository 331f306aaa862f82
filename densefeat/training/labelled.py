"""Labelled images of any input: the class or classes of each position, and a reader of images by position."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.base import shorten_text
from densefeat.errors import UsageError
from densefeat.images import (
    ImageFiles,
    ImageReader,
    RandomAccess,
    clean_labels,
    list_splits,
    open_for_training,
    printable_keys,
)
from densefeat.labels import (
    LABEL,
    SEPARATOR,
    Task,
    encode_multi_labels,
    find_label_depth,
    find_repeats,
    match_numbers,
    sort_classes,
)
from densefeat.training.classic import DecodedImages, read_classic


@dataclass(frozen=True)
class EncodedImages:
    """Images as bytes, with their labels.

    ``labels``: int64 ``(N,)``, -1 where there is none; with several labels an image int8 ``(N, C)`` of 0 and 1, a row of -1
    where there is none. ``place``: the input, or the folder of a split in it. ``repeats``: int64, the positions of lines that
    repeat others in a list; they have no label.
    """

    source: RandomAccess
    labels: np.ndarray
    classes: list[str]
    task: Task = "single"
    place: str = ""
    repeats: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @cached_property
    def groups(self) -> np.ndarray | None:
        """Sizes of the ranges of positions that are read together, int64; None where each image is read alone."""
        return self.source.group_sizes()

    def key(self, position: int) -> str:
        return self.source.key(position)

    def reader(self) -> ImageReader:
        return self.source.reader()


LabelledImages = DecodedImages | EncodedImages


def open_labelled(
    path: str,
    train: bool,
    label_column: str | None = None,
    classes: list[str] | None = None,
    task: str = "single",
    base: str | None = None,
    splits: Sequence[str] = (),
) -> LabelledImages:
    """Open the labelled images at ``path``.

    Args:
        path: A folder of classes (``class/image.jpg``), a folder with CIFAR's or SVHN's files, or any other input that
            :func:`densefeat.images.sources.open_source` reads: a list of paths, Parquet or tar files, ``hf:NAME:SPLIT``, or a
            folder that ``save_to_disk`` wrote.
        train: Whether to take the training images or the test images of CIFAR and SVHN, which lie in one folder.
        label_column: Of lists and tables ("label" by default), or the extension of a tar's members ("cls" by default).
        classes: The classes of the training data, which each label must be one of; None: the classes are found by the labels.
        task: "multi": a label names any number of classes, ``a|b``, or with a lone ``|`` none; "auto": "multi" if a label has a
            ``|`` and is no folder, else "single".
        base: The folder that a list's paths are relative to; None: the list's own.
        splits: The split to take of a folder of splits, the first of these that is there; empty: train, or test and val.

    Raises UsageError where the input is missing or of no known kind, has no labels, or has a label that is not in ``classes``,
    and where a list gives an image two labels.
    """
    if os.path.isdir(path) and (arrays := read_classic(Path(path), train)) is not None:
        return arrays
    path = _choose_split(path, splits or (("train",) if train else ("test", "val")))
    source = open_for_training(path, label_column, base)
    texts, repeats = _read_texts(source, path, label_column)
    if not texts.is_valid().true_count:
        raise UsageError(f"{path!r}: no image with a label in it: labels are folders (class/image.jpg), or label_column")
    if task == "multi" or (task == "auto" and _has_several_labels(source, texts)):
        return EncodedImages(source, *_encode_matrix(texts, classes, path), "multi", path, repeats)
    classes = classes or source.class_names()
    texts = _match_numbers(texts, classes or [])
    classes = classes or sort_classes(texts.drop_null().unique().to_pylist())
    return EncodedImages(source, _encode_numbers(texts, classes, path), classes, "single", path, repeats)


def _choose_split(path: str, wanted: Sequence[str]) -> str:
    """Return the folder of the first wanted split that is there, or ``path`` itself where it holds no splits."""
    splits = list_splits(path)
    if not splits:
        return path
    for name in wanted:
        if name in splits:
            return splits[name]
    there = next(iter(splits.values()))
    raise UsageError(f"{path!r} holds splits, but no {' or '.join(wanted)}: name the folder to use, such as {there!r}")


def _read_texts(source: RandomAccess, path: str, label_column: str | None) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Return the labels, without those of images that a list names again, and the positions of these.

    Raises UsageError for an image with two labels.
    """
    texts = source.label_values()
    if source.class_names() is None:
        texts = clean_labels(texts)
    if not (isinstance(source, ImageFiles) and source.failures):
        return texts, np.empty(0, np.int64)
    repeats = find_repeats(source.keys(), texts, repr(path), label_column or LABEL, labels=True)
    return pc.if_else(pa.array(repeats), None, texts), np.flatnonzero(repeats)


def _has_several_labels(source: RandomAccess, texts: pa.LargeStringArray) -> bool:
    """Return whether a label names several classes; a ``|`` in the name of a folder is a letter like any other."""
    if not pc.any(pc.match_substring(texts, SEPARATOR)).as_py():
        return False
    if not isinstance(source, ImageFiles):
        return True
    known = texts.is_valid()
    return find_label_depth(printable_keys(source.keys()).filter(known).to_pylist(), texts.filter(known).to_pylist()) is None


def _match_numbers(texts: pa.LargeStringArray, classes: Sequence[str]) -> pa.LargeStringArray:
    """Give a whole number that is written in several ways, or in another way than in ``classes``, a single name."""
    changed = match_numbers(texts.drop_null().unique().to_pylist(), classes)
    if not changed:
        return texts
    old, new = (pa.array(names, pa.large_string()) for names in (changed.keys(), changed.values()))
    return pc.coalesce(new.take(pc.index_in(texts, old)), texts)


def _encode_numbers(texts: pa.LargeStringArray, classes: list[str], path: str) -> np.ndarray:
    """Turn labels into places in ``classes``, int64 ``(N,)``. Raises UsageError for a label that is not among them."""
    codes = pc.index_in(texts, pa.array(classes, pa.large_string()))
    unknown = texts.filter(pc.and_(pc.is_null(codes), pc.is_valid(texts)))
    if len(unknown):
        known = f"{len(classes)} known classes, {shorten_text(', '.join(classes[:3]))}, …"
        raise UsageError(f"{path!r}: label {unknown[0].as_py()!r} is not one of the {known}")
    return codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _encode_matrix(texts: pa.LargeStringArray, classes: list[str] | None, path: str) -> tuple[np.ndarray, list[str]]:
    """Return int8 ``(N, C)`` and the classes. Raises UsageError for a label that is not in ``classes``."""
    rows = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
    try:
        targets = encode_multi_labels([text for text in texts.to_pylist() if text is not None], classes)
    except UsageError as error:
        raise UsageError(f"{path!r}: {error}") from error
    labels = np.full((len(texts), len(targets.classes)), -1, np.int8)
    labels[rows] = targets.values
    return labels, list(targets.classes)
