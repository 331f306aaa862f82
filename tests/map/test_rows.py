"""Which rows and columns of a store a map shows."""

from pathlib import Path

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.map.rows import _read_rows, _sample_rows, choose_block_columns, read_map_rows
from densefeat.store.reader import open_store
from support.probes import write_probe_store
from support.stores import random_features, write_store


def pooled_store(path: Path, names: list[str], pools: list[str], shape: tuple[int, ...] = (3,)) -> Path:
    return write_probe_store(path, None, random_features(4, dict.fromkeys(names, shape)), pool=pools)


@pytest.mark.parametrize(
    ("names", "pools", "pool", "wanted"),
    [
        (["block1", "block2"], ["avg"], None, {"block1": "block1", "block2": "block2"}),
        (["block1", "block2"], ["avg"], "avg", {"block1": "block1", "block2": "block2"}),
        (["block1_avg", "block1_gem", "block2_avg"], ["avg", "gem:4"], None, {"block1": "block1_avg", "block2": "block2_avg"}),
        (["block1_avg", "block1_gem", "block2_gem"], ["avg", "gem:4"], "gem", {"block1": "block1_gem", "block2": "block2_gem"}),
        (["my_avg", "other"], ["avg"], None, {"my_avg": "my_avg", "other": "other"}),
        (["block1", "block2"], [], None, {"block1": "block1", "block2": "block2"}),
    ],
)
def test_a_column_of_each_block(tmp_path: Path, names: list[str], pools: list[str], pool: str | None, wanted: dict) -> None:
    store = open_store(pooled_store(tmp_path / "s.parquet", names, pools))
    assert list(choose_block_columns(store, pool).items()) == list(wanted.items())


def test_no_such_pool(tmp_path: Path) -> None:
    store = open_store(pooled_store(tmp_path / "s.parquet", ["block1_avg", "block1_max"], ["avg", "max", "none"]))
    with pytest.raises(UsageError, match="no features of pool 'gem': it has avg, max"):
        choose_block_columns(store, "gem")


def test_maps_alone(tmp_path: Path) -> None:
    store = open_store(pooled_store(tmp_path / "s.parquet", ["block1"], ["none"], (3, 2, 2)))
    with pytest.raises(UsageError, match=r"has only maps \(block1\): extract with --pool avg"):
        choose_block_columns(store)


def test_maps_beside_are_left_out(tmp_path: Path) -> None:
    features = random_features(4, {"block1_avg": (3,), "block1_none": (3, 2, 2)})
    store = open_store(write_probe_store(tmp_path / "s.parquet", None, features, pool=["avg", "none"]))
    assert choose_block_columns(store) == {"block1": "block1_avg"}


def test_no_rows(tmp_path: Path) -> None:
    write_store(tmp_path / "s", finished=0)
    with pytest.raises(UsageError, match="has no rows to show"):
        choose_block_columns(open_store(tmp_path / "s"))


@pytest.mark.parametrize(("rows", "most"), [(5, 5), (5, 9), (1, 1)])
def test_all_that_fit(rows: int, most: int) -> None:
    assert _sample_rows(rows, most).tolist() == list(range(rows))


@pytest.mark.parametrize(("rows", "most"), [(6, 5), (1000, 7), (10**9, 100)])
def test_a_sample_is_spread(rows: int, most: int) -> None:
    found = _sample_rows(rows, most)
    assert len(found) == most
    starts = np.arange(most + 1) * rows // most
    assert ((starts[:-1] <= found) & (found < starts[1:])).all()
    assert np.array_equal(found, _sample_rows(rows, most))


def test_a_period_does_not_bias_it() -> None:
    """Classes that take turns, as many as the stretches are long."""
    counts = np.bincount(_sample_rows(10_000, 1000) % 10, minlength=10)
    assert counts.min() > 60


def test_rows_are_read_across_parts(tmp_path: Path) -> None:
    features = write_store(tmp_path / "s")
    rows = np.array([0, 9, 10, 29])
    assert np.array_equal(_read_rows(open_store(tmp_path / "s"), "block2", rows), features["block2"][rows])


def test_rows_without_sound_features_are_left_out(tmp_path: Path) -> None:
    features = random_features(6)
    features["block1"][2, 1] = np.nan
    features["block2"][4, 0] = np.inf
    store = open_store(write_probe_store(tmp_path / "s.parquet", None, features))
    done: list[int] = []
    shown = read_map_rows(store, choose_block_columns(store), ["block2"], done.append)
    assert shown.rows.tolist() == [0, 1, 3, 5]
    assert np.array_equal(shown.features["block2"], features["block2"][[0, 1, 3, 5]])
    assert shown.notes == ("2 rows with NaN or infinite features are left out: extract them again.",)
    assert done == [1, 1]


def test_no_sound_row(tmp_path: Path) -> None:
    store = open_store(write_probe_store(tmp_path / "s.parquet", None, {"block1": np.full((2, 3), np.nan, np.float32)}))
    with pytest.raises(UsageError, match="all rows have NaN or infinite features"):
        read_map_rows(store, choose_block_columns(store), [], print)


def test_an_unfinished_store(tmp_path: Path) -> None:
    write_store(tmp_path / "s", finished=2)
    store = open_store(tmp_path / "s")
    assert read_map_rows(store, choose_block_columns(store), [], print).notes == (
        f"{store.path} is not finished: 20 rows are there.",
    )
