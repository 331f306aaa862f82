"""Which vectors of a store are compared."""

import re
from typing import Any

from densefeat.errors import UsageError
from densefeat.store.reader import Store
from densefeat.store.writer import vector_names

BY_KEY = "query it by --key"  # what to do where a store cannot be queried by images


def choose_column(store: Store, block: int | None = None, column: str | None = None) -> str:
    """The name of a vector column: the one named, that of a block (from 1), or the last of the store.

    A block of a model whose features are named by its modules is the n-th feature of the store. UsageError where there is no
    such column, several of a block (one for each pool), or no row at all.
    """
    if not len(store):
        raise UsageError(f"{store.path} has no rows to search")
    names = vector_names(store.schema)
    if column is not None:
        if column not in names:
            raise UsageError(f"{store.path} has no vectors {column!r}: it has {', '.join(names)}")
        return column
    if block is None:
        return names[-1]
    fitting = [name for name in names if re.fullmatch(rf"block{block}(_[a-z]+)?", name)]
    if not fitting and not any(re.match(r"block\d", name) for name in names):
        fitting = names[block - 1 : block] if block > 0 else []
    if len(fitting) > 1:
        raise UsageError(
            f"block {block} of {store.path} was pooled in several ways: choose one of --column {', '.join(fitting)}"
        )
    if not fitting:
        raise UsageError(f"{store.path} has no block {block}: it has {', '.join(names)}")
    return fitting[0]


def _made_by(store: Store, column: str) -> tuple[str, str]:
    """As :func:`block_and_pool`, of a store."""
    return block_and_pool(
        store.provenance, column, f"{store.path} does not tell which block and pool made {column!r}: {BY_KEY}"
    )


def block_and_pool(made: dict[str, Any], column: str, unknown: str) -> tuple[str, str]:
    """The block and the pool that a column comes from, as provenance names them.

    UsageError, ``unknown``, where none of them gives the column.
    """
    pools = pools_of(made)
    for block in made["blocks"]:
        for pool in pools:
            if column == (block if len(pools) == 1 else f"{block}_{pool.partition(':')[0]}"):
                return block, pool
    raise UsageError(unknown)


def pools_of(made: dict[str, Any]) -> list[str]:
    pools = made["pool"]
    return pools.split(",") if isinstance(pools, str) else pools  # text in older stores
