"""Folders of labelled images: which of them are classes, and which are splits with folders of classes in them."""

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import product
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
_SIMILAR: dict[str, _Split] = {**SPLIT_NAMES, "eval": "val", "evaluation": "val"}  # words in the names of splits
_NEUTRAL = ("data", "dataset", "image", "images", "set", "split")  # words that do not say which set a split is of
_SPLIT_WORD = re.compile(rf"({'|'.join(_SIMILAR)})(?:{'|'.join((*_SIMILAR, *_NEUTRAL))})?")  # such as testset, trainval
_WORD = re.compile(r"[^\W\d_]+")
_CAPITAL_IN_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")
_BLOCK = 65536  # keys turned into Python strings at a time


def may_be_splits(names: Iterable[str]) -> bool:
    """Check whether any folder among these is called like a split: others are never read as splits."""
    return any(_read_similar(name) for name in names)


def _read_similar(name: str) -> tuple[_Split, list[str]] | None:
    """Read a name such as seg_train or val2017: the split, and the other words, which say which set it is of."""
    words = [word.lower() for word in _WORD.findall(_CAPITAL_IN_WORD.sub(" ", name))]
    matches = [match for match in map(_SPLIT_WORD.fullmatch, words) if match]
    if not matches:
        return None
    others = [word for word in words if word not in _NEUTRAL and not _SPLIT_WORD.fullmatch(word)]
    return _SIMILAR[matches[0][1]], others


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
    _check_similar(folders, images)


def _check_similar(folders: Mapping[str, Collection[str]], images: str) -> None:
    """Raise UsageError where names resemble a training split and another split of the same set, whatever is beside them.

    Names of other sets, such as ``bullet_train`` and ``test_tube``, are in doubt only where the folders in them are the same.
    """
    similar = {name: read for name in sorted(folders) if (read := _read_similar(name))}
    train = [name for name, (split, _) in similar.items() if split == "train"]
    doubtful = [list(pair) for pair in product(train, sorted(similar.keys() - train))]
    doubtful = [pair for pair in doubtful if similar[pair[0]][1] == similar[pair[1]][1] or _share_folder(folders, pair)]
    if len(folders) == len(similar) > 1 and _share_folder(folders, similar):
        doubtful.append(list(similar))
    if doubtful:
        names = doubtful[0]
        reason = "they hold the same folders" if _share_folder(folders, names) else "they are called so"
        raise _ambiguous(images, sorted(names), f"splits, for {reason}", _advise_folder(folders, min(names), images))


def _share_folder(folders: Mapping[str, Collection[str]], names: Iterable[str]) -> bool:
    return bool(set.intersection(*(set(folders[name]) for name in names)))


def _check_shared_classes(folders: Mapping[str, Collection[str]], by_split: Mapping[_Split, str], images: str) -> None:
    """Raise UsageError where a split has no class of the training split, or calls one otherwise: they may be classes."""
    train = by_split.get("train")
    if train is None:
        return
    classes = set(folders[train])
    spellings = {name.casefold(): name for name in sorted(classes)}
    for split in by_split.values():
        for name in sorted(set(folders[split]) - classes):
            if spelling := spellings.get(name.casefold()):
                raise UsageError(
                    f"images {images!r}: '{train}/{spelling}' and '{split}/{name}' differ only in capital letters: "
                    "give a class the same name in all splits"
                )
        if not classes & set(folders[split]):
            advice = _advise_folder(folders, train, images)
            raise _ambiguous(images, [train, split], "splits, but no folder is in both", advice)


def _advise_folder(folders: Mapping[str, Collection[str]], name: str, images: str) -> str:
    """Say how to name a split: by the folder that holds its classes, which is one deeper in such as seg_train/seg_train."""
    inner = list(folders[name])
    place = f"{name}/{inner[0]}" if len(inner) == 1 and _read_similar(inner[0]) else name
    return f"for splits, name each by its folder, such as '{images.rstrip('/')}/{place}'"


def _ambiguous(images: str, names: list[str], reading: str, advice: str) -> UsageError:
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
