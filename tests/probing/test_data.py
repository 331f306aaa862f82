"""Columns side by side, of one store or two."""

from pathlib import Path

import numpy as np
import pytest

import densefeat
from densefeat.errors import UsageError
from densefeat.labels.splits import TEST, TRAIN, VAL
from densefeat.probing.data import FeatureColumns, _open_columns, load_data
from densefeat.store.reader import Store
from support.probes import draw_codes, make_features, write_class_store, write_probe_store
from support.stores import write_store


def pair(tmp_path: Path, **second: object) -> list[Store]:
    paths = [write_class_store(tmp_path / "a.parquet", 50), write_class_store(tmp_path / "b.parquet", 20, seed=1, **second)]
    return [densefeat.open_store(path) for path in paths]


@pytest.mark.parametrize("read_bytes", [4 * 8 * 7, 2**27])
def test_rows_of_two_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    monkeypatch.setattr("densefeat.probing.data._READ_BYTES", read_bytes)
    monkeypatch.setattr("densefeat.probing.data._PIECE_BYTES", 4 * 12 * 5)
    columns, notes = _open_columns(pair(tmp_path))
    one, two = (make_features(draw_codes(rows, seed=seed), seed) for rows, seed in ((50, 0), (20, 1)))
    whole = np.concatenate([np.concatenate([part["block3"], part["block1"]], 1) for part in (one, two)])
    rows = np.flatnonzero(np.random.default_rng(0).random(70) < 0.4)
    features = columns.read(["block3", "block1"], rows)
    np.testing.assert_array_equal(features, whole[rows])
    assert (features.dtype, features.flags.c_contiguous, notes) == (np.float32, True, [])
    pieces = list(columns.pieces(["block3", "block1"], rows))
    assert {len(piece) for piece in pieces[:-1]} == {5}
    np.testing.assert_array_equal(np.concatenate(pieces), features)
    assert columns.read(["block2"], rows[:0]).shape == (0, 6)


def test_half_precision_and_parts(tmp_path: Path) -> None:
    features = write_store(tmp_path / "s", rows=30, part_rows=7, dtype="float16")
    columns, _ = _open_columns([densefeat.open_store(tmp_path / "s")])
    rows = np.arange(0, 30, 3)
    np.testing.assert_array_equal(columns.read(["block2"], rows), features["block2"][rows].astype(np.float32))


def test_maps_are_left_out(tmp_path: Path) -> None:
    store = densefeat.open_store(write_probe_store(tmp_path / "m.parquet", None, {"a_none": np.ones((3, 2, 4, 4), np.float32)}))
    with pytest.raises(UsageError, match=r"has only maps \(a_none\): extract with --pool avg"):
        _open_columns([store])
    both = {"a_avg": np.ones((3, 2), np.float32), "a_none": np.ones((3, 2, 4, 4), np.float32)}
    columns, notes = _open_columns([densefeat.open_store(write_probe_store(tmp_path / "n.parquet", None, both))])
    assert columns.widths == {"a_avg": 2}
    assert notes == ["maps are left out, only pooled features are learnt from: a_none"]


def test_an_unfinished_store_says_so(tmp_path: Path) -> None:
    write_store(tmp_path / "s", rows=30, part_rows=10, finished=2)
    _, notes = _open_columns([densefeat.open_store(tmp_path / "s")])
    assert notes == [f"{tmp_path / 's'} is not finished: 20 rows are there"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    values = np.ones((5, 2), np.float32)
    values[3, 1] = bad
    store = densefeat.open_store(write_probe_store(tmp_path / "s.parquet", None, {"block1": values}))
    columns = FeatureColumns((store,), {"block1": 2})
    with pytest.raises(UsageError, match=r"block1 of '3.jpg' has NaN or infinite features: extract it again"):
        columns.read(["block1"], np.arange(5))
    assert len(columns.read(["block1"], np.array([0, 1, 2, 4]))) == 4


@pytest.mark.parametrize(
    ("provenance", "match"),
    [
        ({"model": "other"}, "made with model other, .* with made-up: extract both in the same way"),
        ({"weights": {"sha256": "1"}}, "made with weights 1, .* with 0"),
        ({"preprocessing": {"size": 64}}, r"made with preprocessing \{'size': 64, "),
    ],
)
def test_stores_with_different_features(tmp_path: Path, provenance: dict, match: str) -> None:
    first = densefeat.open_store(write_class_store(tmp_path / "a.parquet", weights={"sha256": "0", "source": "here"}))
    same = densefeat.open_store(write_class_store(tmp_path / "b.parquet", weights={"sha256": "0", "source": "there"}))
    assert _open_columns([first, same])[1] == []
    settings = {"weights": {"sha256": "0"}} | provenance
    with pytest.raises(UsageError, match=match):
        _open_columns([first, densefeat.open_store(write_class_store(tmp_path / "c.parquet", **settings))])


def test_second_store_with_another_column(tmp_path: Path) -> None:
    first = densefeat.open_store(write_class_store(tmp_path / "a.parquet"))
    features = {"block1": np.ones((3, 4), np.float32), "block2": np.ones((3, 9), np.float32)}
    other = densefeat.open_store(write_probe_store(tmp_path / "b.parquet", None, features))
    with pytest.raises(UsageError, match=r"b.parquet: block2 is \(9,\), in .*a.parquet it is \(6,\)"):
        _open_columns([first, other])


def write_split_store(path: Path, rows: dict[str, int], depth: int = 1) -> Store:
    """A store of folders of splits, so many rows for each of two classes; ``depth`` 0: labelled with the splits."""
    keys = [f"{split}/{label}/{i}.jpg" for split, count in rows.items() for label in ("cat", "dog") for i in range(count)]
    labels = [key.split("/")[depth] for key in keys]
    features = make_features(draw_codes(len(keys), 2))
    return densefeat.open_store(write_probe_store(path, labels, features, keys))


@pytest.mark.parametrize(
    ("rows", "sizes", "tested"),
    [
        ({"train": 30, "val": 5, "test": 7}, (60, 10, 14), "test"),
        ({"Train": 30, "Val": 5}, (54, 6, 10), "Val"),
        ({"training": 30, "testing": 5}, (54, 6, 10), "testing"),
    ],
)
def test_folders_of_splits_are_the_parts(tmp_path: Path, rows: dict[str, int], sizes: tuple[int, ...], tested: str) -> None:
    data = load_data([write_split_store(tmp_path / "s.parquet", rows)])
    assert data.labelled.targets.classes == ("cat", "dog")
    assert tuple(data.sizes().values()) == sizes
    firsts = np.array([path.partition("/")[0] for path in data.labelled.paths])
    assert set(firsts[data.parts == TEST]) == {tested}
    assert set(firsts[data.parts == TRAIN]) == {next(iter(rows))}
    assert f"the folders {', '.join(sorted(rows))} are splits: figures are of {tested}" in data.notes


def test_a_single_folder_of_a_split_is_split(tmp_path: Path) -> None:
    data = load_data([write_split_store(tmp_path / "s.parquet", {"train": 30})])
    assert data.sizes() == {"train": 43, "val": 5, "test": 12}


def test_a_column_comes_before_folders(tmp_path: Path) -> None:
    store = write_split_store(tmp_path / "s.parquet", {"train": 3, "test": 3})
    lines = [f"{key},{key.split('/')[1]},{'test' if key.endswith('0.jpg') else 'train'}" for key in store.keys]
    (tmp_path / "l.csv").write_text("\n".join(["path,label,part", *lines]))
    data = load_data([store], labels=tmp_path / "l.csv", split_column="part")
    assert [path[-5] for path, part in zip(data.labelled.paths, data.parts, strict=True) if part == TEST] == ["0"] * 4
    assert (data.parts != VAL).any()


def test_folders_of_splits_that_cannot_be_used(tmp_path: Path) -> None:
    splits = write_split_store(tmp_path / "s.parquet", {"train": 9, "val": 9})
    other = write_split_store(tmp_path / "t.parquet", {"more": 9})
    with pytest.raises(
        UsageError, match="s.parquet holds folders of splits, and --test names the test rows, too: leave out --test"
    ):
        load_data([splits, write_split_store(tmp_path / "u.parquet", {"test": 9})])
    with pytest.raises(
        UsageError, match="its labels are the splits 'train' and 'val', not the classes in them: extract it again"
    ):
        load_data([write_split_store(tmp_path / "old.parquet", {"train": 9, "val": 9}, depth=0)])
    assert load_data([other]).labelled.parts is None
