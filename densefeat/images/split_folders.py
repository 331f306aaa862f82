"""Folders of labelled images: which of them are classes, and which are splits with folders of classes in them."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import pyarrow as pa

from densefeat.errors import UsageError
from densefeat.images.stream import printable_key

_Split = Literal["train", "val", "test"]

# the splits by the usual names, in lower case
SPLIT_NAMES: dict[str, _Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_SIMILAR = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(SPLIT_NAMES)})(?![a-z])")  # such as training_set, seg_train, val2017
_BLOCK = 65536  # keys turned into Python strings at a time


def may_be_splits(names: Iterable[str]) -> bool:
    """Check whether any folder among these is called like a split: others are never read as splits."""
    return any(_SIMILAR.search(name.lower()) for name in names)


def find_splits(folders: Mapping[str, Collection[str]], images: str) -> dict[_Split, str]:
    """Find the folder of each split among the folders in ``images``; none where these are classes.

    ``folders``: the name of each, with the names of the folders in it; only those with images somewhere below count.
    Raises UsageError, with both readings, for folders that may be either. A ``test`` without folders has no labels and is no
    split here.
    """
    named = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    others = [name for name in folders if name not in named]
    if not named or others:
        _check_classes(folders, named, images)
        return {}
    nested = {name: split for name, split in named.items() if folders[name]}
    flat = sorted(named.keys() - nested)
    if not nested and len(flat) == 1:
        return {}  # a single class
    if not nested or any(named[name] != "test" for name in flat):
        reading = f"splits, but {flat[0]!r} holds no folders of classes"
        raise _ambiguous(images, sorted(named), reading, "for splits, put a folder for each class into them")
    by_split: dict[_Split, str] = {}
    for name, split in sorted(nested.items()):
        if split in by_split:
            raise UsageError(
                f"images {images!r}: {by_split[split]!r} and {name!r} are names of one split: name the folder of one of them"
            )
        by_split[split] = name
    _check_shared_classes(folders, by_split, images)
    return by_split


def _check_classes(folders: Mapping[str, Collection[str]], named: Mapping[str, _Split], images: str) -> None:
    """Raise UsageError where folders that are read as classes may be splits."""
    others = folders.keys() - named
    for name, split in sorted(named.items()):
        inner = set(folders[name])
        if inner and (split == "train" or inner & others):
            problem = f"images {images!r} holds {name}/ with folders in it, and {min(others)!r} beside it"
            advice = f"if {name} is a split, give '{images.rstrip('/')}/{name}', if it is a class, a list with labels"
            raise UsageError(f"{problem}: {advice}")
    similar = all(_SIMILAR.search(name.lower()) for name in folders)
    if len(folders) > 1 and similar and set.intersection(*(set(inner) for inner in folders.values())):
        raise _ambiguous(images, sorted(folders), "splits, for they hold the same folders")


def _check_shared_classes(folders: Mapping[str, Collection[str]], by_split: Mapping[_Split, str], images: str) -> None:
    """Raise UsageError where a split has no class of the training split: what looks like splits may be classes."""
    train = by_split.get("train")
    for name in by_split.values():
        if train is not None and not set(folders[train]) & set(folders[name]):
            raise _ambiguous(images, [train, name], "splits, but no folder is in both")


def _ambiguous(images: str, names: list[str], reading: str, advice: str | None = None) -> UsageError:
    advice = advice or f"for splits, name each by its folder, such as '{images.rstrip('/')}/{names[0]}'"
    places = " and ".join(map(repr, names))
    return UsageError(
        f"images {images!r}: {places} may be classes, or {reading}: {advice}; for classes, give a list with labels"
    )


def list_inner_folders(keys: Iterable[bytes]) -> dict[str, set[str]]:
    """List the folders in a folder by the keys of its images, each with the folders in it."""
    folders: dict[bytes, set[bytes]] = {}
    for key in keys:
        first, slash, rest = key.partition(b"/")
        if slash:
            inner = folders.setdefault(first, set())
            second, slash, _ = rest.partition(b"/")
            if slash:
                inner.add(second)
    return {format_name(name): set(map(format_name, inner)) for name, inner in folders.items()}


def label_by_folder(keys: pa.LargeBinaryArray, images: str) -> pa.LargeStringArray:
    """Return the class of each key: its first folder, or the folder in that where the first is a split.

    Null for a file beside the folders. ``images``, and errors: as for :func:`find_splits`.
    """
    blocks = [keys[start : start + _BLOCK].to_pylist() for start in range(0, len(keys), _BLOCK)]
    depth = 1 if find_splits(list_inner_folders(key for block in blocks for key in block), images) else 0
    labels = []
    for block in blocks:
        parts = (key.split(b"/", depth + 1) for key in block)
        names = [format_name(part[depth]) if len(part) > depth + 1 else None for part in parts]
        labels.append(pa.array(names, pa.large_string()))
    return pa.concat_arrays([pa.array([], pa.large_string()), *labels])


def format_name(name: bytes) -> str:
    """Show the name of a file or folder; bytes that are not UTF-8 are escapes."""
    return printable_key(name.decode("utf-8", "surrogateescape"))
