"""Rows of tables as items, and a source that is read from front to back."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from densefeat.images.columns import Columns, labels_of
from densefeat.images.files import MAX_BYTES, failing, given
from densefeat.images.stream import ImageItem

_NO_IMAGE = "neither bytes nor a path in this row"


class Rows:
    """A source that costs something to enter: a range that begins where the last one ended goes on reading there.

    Subclasses give ``rows``.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._left: tuple[int, int, Iterator[ImageItem]] | None = None  # process, position, rows from there

    def rows(self, start: int) -> Iterator[ImageItem]:
        """Items from a position to the end."""
        raise NotImplementedError

    def items(self, start: int, stop: int) -> Iterator[ImageItem]:
        with self._lock:
            left, self._left = self._left, None
        rows = left[2] if left is not None and left[:2] == (os.getpid(), start) else self.rows(start)
        yield from islice(rows, max(stop - start, 0))
        with self._lock:
            self._left = os.getpid(), max(start, stop), rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_left")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Rows.__init__(self)
        self.__dict__.update(state)


def row_items(
    batch: pa.RecordBatch,
    columns: Columns,
    names: list[str] | None,
    key: str,
    first: int,
    read_path: Callable[[str], bytes],
) -> Iterator[ImageItem]:
    """Items ``key#first``, ``key#first + 1``, …; ``names``: of the label's classes; ``read_path``: where only a path is."""
    data, paths = _image_arrays(batch.column(columns.image))
    labels = [None] * len(batch)
    if columns.label is not None:
        labels = labels_of(batch.column(columns.label), names).to_pylist()
    for row, label in enumerate(labels):
        name = f"{key}#{first + row}"
        encoded = data[row].as_py()
        path = None if paths is None else paths[row].as_py()
        if encoded is not None and len(encoded) > MAX_BYTES:
            yield failing(name, label, f"{len(encoded):,} bytes are more than the limit of {MAX_BYTES:,}")
        elif encoded is not None:
            yield ImageItem(name, label, given(encoded))
        elif path is not None:
            yield ImageItem(name, label, partial(read_path, os.fsdecode(path)))
        else:
            yield failing(name, label, _NO_IMAGE)


def _image_arrays(image: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """Bytes, and paths where there are any."""
    if not isinstance(image, pa.StructArray):
        return image, None
    parts = dict(zip((field.name for field in image.type), image.flatten(), strict=True))
    path = parts.get("path")
    return parts["bytes"], path if path is None else path.cast(pa.large_binary())  # of which not all is UTF-8


def row_keys(key: str, count: int) -> pa.LargeBinaryArray:
    """``key#0``, ``key#1``, …"""
    numbers = pa.array(range(count), pa.int64()).cast(pa.large_string()).cast(pa.large_binary())
    head = pa.scalar(os.fsencode(key + "#"), pa.large_binary())
    return pc.binary_join_element_wise(head, numbers, pa.scalar(b"", pa.large_binary()))
