"""Labelled images, whatever layout they come in: positions with a class each, and how to read one of them."""

import os
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.errors import DecodeError, UsageError
from densefeat.images import DELIMITERS, TEXTS, ImageItem, Indexed, Saved, Source, Tables, open_saved, open_source, open_split
from densefeat.labels import SEPARATOR, Task, encode_multi_labels, sort_classes
from densefeat.training.classic import Arrays, read_classic

_CACHE_BYTES = 2**29  # of encoded images that one process keeps


class Reader(Protocol):
    """Random access to encoded images."""

    def read(self, position: int) -> bytes:
        """DecodeError (stage ``read``) where it cannot be had."""


@dataclass(frozen=True)
class Encoded:
    """Images as bytes. ``groups``: rows that are read together, if any.

    ``labels``: int64 ``(N,)``, -1 where there is none; of several labels an image int8 ``(N, C)``, 0 and 1, -1 throughout.
    """

    source: Indexed | Tables | Saved
    labels: np.ndarray
    classes: list[str]
    groups: np.ndarray | None
    task: Task = "single"

    def key(self, position: int) -> str:
        if isinstance(self.source, Saved):
            return f"{self.source.name}#{position}"
        if isinstance(self.source, Indexed):
            return os.fsdecode(self.source.keys()[position].as_py())
        for file in self.source.files:  # the keys of all rows would take a while to make
            if position < file.length:
                return f"{file.name}#{position}" if file.error is None else file.name
            position -= file.length
        raise IndexError(position)

    def reader(self) -> Reader:
        return RowReader(self.source) if isinstance(self.source, Tables) else ItemReader(self.source)


Labelled = Arrays | Encoded


def open_labelled(
    path: str, train: bool, label_column: str | None = None, classes: list[str] | None = None, task: str = "single"
) -> Labelled:
    """The labelled images at ``path``.

    Args:
        path: A folder of classes (``class/image.jpg``); a list of paths with ``label_column``; Parquet files in the datasets
            layout, by glob or braces, too; WebDataset tars; ``hf:NAME:SPLIT``, or what ``save_to_disk`` wrote; a folder with
            CIFAR's or SVHN's own files.
        train: Which of the files where training and test images lie in one folder.
        label_column: Of lists and tables ("label" by default), or the extension of a tar's members ("cls" by default).
        classes: Those of the training data, which the labels here must be among; None: they are found here.
        task: "multi": a label names any number of classes, ``a|b``, a lone ``|`` none; "auto": that where any has a ``|``.

    Raises UsageError where the input is missing or of no such layout, has no labels, or has one that is not in ``classes``.
    """
    if os.path.isdir(path) and (arrays := read_classic(Path(path), train)) is not None:
        return arrays
    source, found = _open_with_labels(path, label_column)
    if not isinstance(source, Indexed | Tables | Saved):
        raise UsageError(f"{path!r}: training needs images by position: give a folder of classes, Parquet files or tar files")
    texts = _label_texts(source)
    groups = np.array(group_sizes(source)) if isinstance(source, Tables) else None
    several = task == "multi" or (task == "auto" and pc.any(pc.match_substring(texts, SEPARATOR)).as_py())
    if several:
        return Encoded(source, *_label_matrix(texts, classes, path), groups, "multi")
    classes = classes if classes is not None else found or sort_classes(texts.drop_null().unique().to_pylist())
    codes = pc.index_in(texts, pa.array(classes, pa.large_string()))
    unknown = texts.filter(pc.and_(pc.is_null(codes), pc.is_valid(texts)))
    if len(unknown):
        known = f"the {len(classes)} classes that are known"
        raise UsageError(f"{path!r}: label {unknown[0].as_py()!r} is none of {known}, {', '.join(classes[:3])}, …")
    labels = codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    if not (labels >= 0).any():
        raise UsageError(_no_label(path))
    return Encoded(source, labels, classes, groups)


def _open_with_labels(path: str, label_column: str | None) -> tuple[Source, list[str] | None]:
    """A source, and the names of its classes in order, where it states them."""
    name = path.lower()
    if name.endswith(".parquet"):
        source = open_source(path, label_column=label_column or "label")
        return source, source.class_names() if isinstance(source, Tables) else None
    if name.endswith(".tar"):
        return open_source(path, label_column=label_column or "cls"), None
    if name.startswith("hf:"):
        rows = open_split(path, label_column=label_column or "label")
        return rows, rows.class_names()
    if os.path.isfile(os.path.join(path, "dataset_info.json")):
        saved = open_saved(path, path, label_column=label_column or "label")
        return saved, saved.class_names()
    if name.endswith(tuple(DELIMITERS)):
        return open_source(path, label_column=label_column or "label"), None
    labels = None if name.endswith(TEXTS) or label_column is not None else "folder"
    return open_source(path, labels=labels, label_column=label_column), None


def _no_label(path: str) -> str:
    return f"{path!r}: no image with a label in it: labels are folders (class/image.jpg), or label_column"


def _label_matrix(texts: pa.LargeStringArray, classes: list[str] | None, path: str) -> tuple[np.ndarray, list[str]]:
    """int8 ``(N, C)``, and the names of the classes. UsageError for a label that is none of ``classes``."""
    rows = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
    if not len(rows):
        raise UsageError(_no_label(path))
    try:
        found = encode_multi_labels([text for text in texts.to_pylist() if text is not None], classes)
    except UsageError as error:
        raise UsageError(f"{path!r}: {error}") from error
    labels = np.full((len(texts), len(found.classes)), -1, np.int8)
    labels[rows] = found.values
    return labels, list(found.classes)


def _label_texts(source: Indexed | Tables | Saved) -> pa.LargeStringArray:
    """The label of each position; null where it has none."""
    if isinstance(source, Tables | Saved):
        return source.label_values()
    return pa.nulls(source.length, pa.large_string()) if source.labels is None else source.labels.cast(pa.large_string())


@dataclass(frozen=True)
class ItemReader:
    """Of files, members of tars, and rows on this machine's disk: each has a place of its own."""

    source: Indexed | Saved

    def read(self, position: int) -> bytes:
        return next(iter(self.source.items(position, position + 1))).read()


class RowReader:
    """Of Parquet: a row group is read as a whole, and kept while it is among the last used, up to ``CACHE_BYTES``."""

    def __init__(self, source: Tables) -> None:
        self.source = source
        self.starts = np.cumsum([0, *group_sizes(source)]).tolist()
        self.kept: OrderedDict[int, list[bytes | DecodeError]] = OrderedDict()
        self.size = 0

    def read(self, position: int) -> bytes:
        group = bisect_right(self.starts, position) - 1
        if group not in self.kept:
            self.keep(group)
        self.kept.move_to_end(group)
        row = self.kept[group][position - self.starts[group]]
        if isinstance(row, DecodeError):
            raise row
        return row

    def keep(self, group: int) -> None:
        self.kept[group] = [_attempt(item) for item in self.source.items(self.starts[group], self.starts[group + 1])]
        self.size += _size_of(self.kept[group])
        while self.size > _CACHE_BYTES and len(self.kept) > 1:
            self.size -= _size_of(self.kept.popitem(last=False)[1])


def group_sizes(source: Tables) -> list[int]:
    """Rows of each row group, of all files; a file that cannot be read is one position."""
    return [count for file in source.files for count in (file.groups if file.error is None else (1,))]


def _attempt(item: ImageItem) -> bytes | DecodeError:
    try:
        return item.read()
    except DecodeError as error:
        return error


def _size_of(rows: list[bytes | DecodeError]) -> int:
    return sum(len(row) for row in rows if isinstance(row, bytes))
