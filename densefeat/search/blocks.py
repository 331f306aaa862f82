"""A store's vectors a block at a time, ready to be compared."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from densefeat.search.metrics import Vectors, prepare
from densefeat.store import PART_ROWS, Store

_BLOCK_BYTES = 64 * 2**20  # of vectors, as float32


def prepared_blocks(store: Store, column: str, metric: str, start: int = 0) -> Iterator[tuple[int, Vectors]]:
    """(first row, vectors) from a row on; the next block is read while one is used."""
    size = int(np.prod(store.shapes[column]))
    rows = max(1, _BLOCK_BYTES // (4 * size))
    rows -= rows % PART_ROWS if rows > PART_ROWS else 0  # blocks of whole parts are decompressed once
    firsts = range(start, len(store), rows)

    def read(first: int) -> tuple[int, Vectors]:
        return first, prepare(store.read(column, first, min(first + rows, len(store))), metric)

    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read, firsts[0]) if firsts else None
        for following in (*firsts[1:], None):
            if pending is not None:
                block = pending.result()
                pending = None if following is None else reader.submit(read, following)
                yield block
