"""Labelled images of any input: the class or classes of each position, and a reader of images by position."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.errors import UsageError
from densefeat.images import ImageReader, RandomAccess, open_for_training
from densefeat.labels import SEPARATOR, Task, encode_multi_labels, sort_classes
from densefeat.training.classic import DecodedImages, read_classic


@dataclass(frozen=True)
class EncodedImages:
    """Images as bytes, with their labels.

    ``labels``: int64 ``(N,)``, -1 where there is none; with several labels an image int8 ``(N, C)`` of 0 and 1, a row of -1
    where there is none.
    """

    source: RandomAccess
    labels: np.ndarray
    classes: list[str]
    task: Task = "single"

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
    path: str, train: bool, label_column: str | None = None, classes: list[str] | None = None, task: str = "single"
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
            ``|``, else "single".

    Raises UsageError where the input is missing or of no known kind, has no labels, or has a label that is not in ``classes``.
    """
    if os.path.isdir(path) and (arrays := read_classic(Path(path), train)) is not None:
        return arrays
    source = open_for_training(path, label_column)
    texts = source.label_values()
    if not texts.is_valid().true_count:
        raise UsageError(f"{path!r}: no image with a label in it: labels are folders (class/image.jpg), or label_column")
    if task == "multi" or (task == "auto" and pc.any(pc.match_substring(texts, SEPARATOR)).as_py()):
        return EncodedImages(source, *_encode_matrix(texts, classes, path), "multi")
    classes = classes or source.class_names() or sort_classes(texts.drop_null().unique().to_pylist())
    return EncodedImages(source, _encode_numbers(texts, classes, path), classes)


def _encode_numbers(texts: pa.LargeStringArray, classes: list[str], path: str) -> np.ndarray:
    """Turn labels into places in ``classes``, int64 ``(N,)``. Raises UsageError for a label that is not among them."""
    codes = pc.index_in(texts, pa.array(classes, pa.large_string()))
    unknown = texts.filter(pc.and_(pc.is_null(codes), pc.is_valid(texts)))
    if len(unknown):
        known = f"{len(classes)} known classes, {', '.join(classes[:3])}, …"
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
