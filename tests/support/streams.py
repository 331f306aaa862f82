"""Helpers for tests of sources: items as plain values, and the rules that every source must follow."""

import os
import pickle
from collections.abc import Iterable
from pathlib import Path

from densefeat.errors import DecodeError
from densefeat.images.stream import Item, Source


def outcomes(items: Iterable[Item]) -> list[tuple[str, str | None, bytes | str]]:
    """Key, label, and the bytes or why there are none."""
    return [(item.key, item.label, outcome(item)) for item in items]


def outcome(item: Item) -> bytes | str:
    try:
        return item.read()
    except DecodeError as error:
        assert error.stage == "read"
        return str(error)


def read_source(source: Source) -> list[tuple[str, str | None, bytes | str]]:
    """All items; checks on the way that the source agrees with itself, in pieces, pickled, and entered in the middle."""
    everything = outcomes(source.items(0, 2**62))
    keys = [os.fsencode(key) for key, _, _ in everything]
    assert source.length in (None, len(everything))
    if source.length is not None:
        assert source.keys().to_pylist() == keys
    assert source.labelled or not any(label for _, label, _ in everything)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()
    starts = range(0, len(everything), 3)
    assert outcomes(item for start in starts for item in copy.items(start, start + 3)) == everything
    for start in range(len(everything) + 1):
        assert outcomes(source.items(start, start + 2)) == everything[start : start + 2]
    return everything


def make(folder: Path, *names: str) -> Path:
    """Files that hold their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder
