"""The names of feature columns, written and read in this one place.

A column is named BLOCK or, if features were pooled in several ways, BLOCK_POOL: ``block3``, ``block3_avg``. BLOCK is
``block1``, ``block2``, … for networks of ours, the module's name for timm's others (``layer3``, ``stages.2``).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from densefeat.errors import UsageError
from densefeat.store.reader import Store
from densefeat.store.writer import vector_names

_POOLS = ("avg", "max", "gem", "none")
_OUR_BLOCK = re.compile(r"block\d+")


@dataclass(frozen=True)
class FeatureColumn:
    """A column with the block and the pool that its features come from; ``pool`` None: not recorded."""

    name: str
    block: str
    pool: str | None


def block_name(number: int) -> str:
    """Return the name of a block of a network of ours, from 1."""
    return f"block{number}"


def column_name(block: str, pool: str, pools: int) -> str:
    """Return the name of a block's column. ``pools``: how many pools the features have."""
    return block if pools == 1 else f"{block}_{pool.partition(':')[0]}"


def split_pools(pools: str | Iterable[str]) -> list[str]:
    """Return ``"avg,gem:4"`` or ``["avg", "gem:4"]`` as a list."""
    return [str(pool).strip() for pool in (pools.split(",") if isinstance(pools, str) else pools)]


def parse_columns(names: Sequence[str], provenance: Mapping[str, Any]) -> list[FeatureColumn]:
    """Split the names of columns into block and pool; where the store does not record its pools, any pool is recognized."""
    recorded = split_pools(provenance["pool"]) if provenance.get("pool") else []
    only = recorded[0] if len(recorded) == 1 else None
    pools = {pool.partition(":")[0]: pool for pool in ([*_POOLS, only] if only else recorded or _POOLS)}
    columns = []
    for name in names:
        block, _, pool = name.rpartition("_")
        if pool in pools and block and (only is None or _OUR_BLOCK.fullmatch(block)):  # a module's name may end in a pool's
            columns.append(FeatureColumn(name, block, pools[pool]))
        else:
            columns.append(FeatureColumn(name, name, only))
    return columns


def choose_column(store: Store, block: int | None = None, column: str | None = None) -> str:
    """Return the name of a feature column: ``column`` itself, that of a block (from 1), or the store's last one.

    Raises UsageError where there is no such column, several of the block (one for each pool), or no row at all.
    """
    if not len(store):
        raise UsageError(f"{store.path} has no rows to search")
    if column is not None:
        return _find_columns(store, column)[0]
    if block is None:
        return vector_names(store.schema)[-1]
    names = _find_block_columns(store, block)
    if not names:
        raise UsageError(f"{store.path} has no block {block}: it has {', '.join(vector_names(store.schema))}")
    if len(names) > 1:
        raise UsageError(f"block {block} of {store.path} was pooled in several ways: choose one of --column {', '.join(names)}")
    return names[0]


def choose_columns(store: Store, columns: Sequence[str] | None) -> list[str]:
    """Return the names of feature columns in the store's order; None: all.

    ``columns``: names, or blocks by number as text (``"3"``: all pools of block 3). Raises UsageError for others.
    """
    names = vector_names(store.schema)
    if columns is None:
        return names
    chosen: set[str] = set()
    for column in columns:
        by_number = _find_block_columns(store, int(column)) if column.isdecimal() else []
        chosen.update(by_number or _find_columns(store, column))
    if not chosen:
        raise UsageError(f"no columns chosen: {store.path} has {', '.join(names)}")
    return [name for name in names if name in chosen]


def _find_columns(store: Store, name: str) -> list[str]:
    names = vector_names(store.schema)
    if name not in names:
        raise UsageError(f"{store.path} has no vectors {name!r}: it has {', '.join(names)}")
    return [name]


def _find_block_columns(store: Store, number: int) -> list[str]:
    """Return the columns of a block by its number; of networks that are not ours, of the n-th block in the store."""
    columns = parse_columns(vector_names(store.schema), store.provenance)
    blocks = list(dict.fromkeys(column.block for column in columns))
    if any(_OUR_BLOCK.fullmatch(block) for block in blocks):
        wanted = block_name(number)
    else:
        wanted = blocks[number - 1] if 0 < number <= len(blocks) else ""
    return [column.name for column in columns if column.block == wanted]


def find_source(provenance: Mapping[str, Any], column: str, unknown: str) -> FeatureColumn:
    """Return the recorded block and pool that a column comes from.

    Raises UsageError with the message ``unknown`` where none of the recorded ones gives the column.
    """
    (parsed,) = parse_columns([column], provenance)
    if parsed.pool is None or parsed.block not in provenance["blocks"]:
        raise UsageError(unknown)
    return parsed
