"""Which column is meant, and what made it."""

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.store.columns import choose_column, choose_columns, column_name, find_source

ONE = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("names", "question", "chosen"),
    [
        (["block1", "block2", "block3"], {}, "block3"),
        (["block2", "block4"], {"block": 2}, "block2"),
        (["block1", "block10"], {"block": 1}, "block1"),
        (["block4_avg"], {"block": 4}, "block4_avg"),
        (["block4_avg", "block4_max"], {"column": "block4_avg"}, "block4_avg"),
        (["layer1", "layer2"], {"block": 2}, "layer2"),  # of another's model: the n-th
    ],
)
def test_choose_column(make_store, names: list[str], question: dict, chosen: str) -> None:
    assert choose_column(make_store(dict.fromkeys(names, ONE)), **question) == chosen


@pytest.mark.parametrize(
    ("names", "question", "match"),
    [
        (["block1", "block2"], {"block": 3}, "has no block 3: it has block1, block2"),
        (["block1"], {"block": 0}, "has no block 0"),
        (["layer1"], {"block": 0}, "has no block 0"),
        (["block4_avg", "block4_max"], {"block": 4}, "pooled in several ways: choose one of --column block4_avg, block4_max"),
        (["block1"], {"column": "path"}, "has no vectors 'path': it has block1"),
    ],
)
def test_no_such_column(make_store, names: list[str], question: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        choose_column(make_store(dict.fromkeys(names, ONE)), **question)


def test_a_store_without_rows(make_store) -> None:
    with pytest.raises(UsageError, match=r"store.parquet has no rows to search"):
        choose_column(make_store({"block1": np.ones((0, 2), np.float32)}))


@pytest.mark.parametrize(
    ("column", "pool", "expected"),
    [
        ("block2", ["avg"], ("block2", "avg")),
        ("block1_gem", ["avg", "gem:4"], ("block1", "gem:4")),
        ("block2_max", "avg,max", ("block2", "max")),
    ],
)
def test_find_source(column: str, pool: list[str] | str, expected: tuple[str, str]) -> None:
    source = find_source({"blocks": ["block1", "block2"], "pool": pool}, column, "unknown")
    assert (source.block, source.pool) == expected
    assert column_name(*expected, 1 if len(pool) == 1 else 2) == column


def test_find_source_of_an_unknown_column() -> None:
    with pytest.raises(UsageError, match="who made mine"):
        find_source({"blocks": ["block1"], "pool": ["avg"]}, "mine", "who made mine")


@pytest.mark.parametrize(
    ("names", "pool", "columns", "chosen"),
    [
        (["block1", "block10"], ["avg"], ["1"], ["block1"]),
        (["block1_avg", "block1_max", "block2_avg", "block2_max"], ["avg", "max"], ["2", "block1_max"], ["block1_max", "block2_avg", "block2_max"]),
        (["layer1", "layer2"], ["avg"], ["2"], ["layer2"]),
        (["stages.0_avg", "stages.0_gem", "stages.1_avg", "stages.1_gem"], ["avg", "gem:4"], ["2"], ["stages.1_avg", "stages.1_gem"]),
    ],
)  # fmt: skip
def test_blocks_by_number_in_every_command(
    make_store, names: list[str], pool: list[str], columns: list[str], chosen: list[str]
) -> None:
    store = make_store(dict.fromkeys(names, ONE), pool=pool)
    assert choose_columns(store, columns) == chosen
    if len(chosen) == 1:
        assert choose_column(store, int(columns[0])) == chosen[0]
