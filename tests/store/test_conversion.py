"""Every format is read back by the library it is for, and appears whole or not at all."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

import densefeat
from densefeat.errors import OutputError, UsageError
from densefeat.store.conversion import _FORMATS, convert
from support.limits import limit_file_size
from support.stores import PROVENANCE, flip_bit, random_features, write_rows, write_store

MAPS = {"block1": (3,), "block1_max": (2,), "block2": (2, 3, 4)}


@pytest.fixture(params=["float32", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def features(tmp_path: Path, dtype: str) -> dict[str, np.ndarray]:
    """The vectors of the store at ``tmp_path/s``: 25 rows in 3 parts, pooled vectors and maps."""
    return write_store(tmp_path / "s", 25, shapes=MAPS, dtype=dtype)


def test_npy(tmp_path: Path, features: dict[str, np.ndarray], dtype: str) -> None:
    done: list[int] = []
    out = convert(tmp_path / "s", "npy", tmp_path / "arrays", advance=done.append)
    assert out == tmp_path / "arrays"
    assert sum(done) == 25 * 3
    assert sorted(os.listdir(out)) == ["block1.npy", "block1_max.npy", "block2.npy", "provenance.json", "rows.parquet"]
    for name, values in features.items():
        mapped = np.load(out / f"{name}.npy", mmap_mode="r")
        assert isinstance(mapped, np.memmap)
        assert mapped.dtype == dtype
        assert np.array_equal(mapped, values)
    store = densefeat.open_store(tmp_path / "s")
    rows = pq.read_table(out / "rows.parquet")
    assert rows.column_names == ["path", "label", "width", "height"]
    assert rows["path"].to_pylist() == store.keys.tolist()
    assert rows["label"].to_pylist() == store.labels.tolist()
    assert json.loads((out / "provenance.json").read_text("utf-8")) == PROVENANCE


def test_npz(tmp_path: Path, features: dict[str, np.ndarray], dtype: str) -> None:
    done: list[int] = []
    store = densefeat.open_store(tmp_path / "s")
    with np.load(convert(store, "npz", tmp_path / "a.npz", advance=done.append)) as arrays:
        assert set(arrays) == {*MAPS, "path", "label", "width", "height", "provenance"}
        for name, values in features.items():
            assert arrays[name].dtype == dtype
            assert np.array_equal(arrays[name], values)
        assert arrays["path"].tolist() == store.keys.tolist()
        assert arrays["label"].tolist() == [label or "" for label in store.labels]
        assert np.array_equal(arrays["width"], np.arange(25))
        assert json.loads(str(arrays["provenance"])) == PROVENANCE
    assert sum(done) == 25 * 3


def test_safetensors(tmp_path: Path, features: dict[str, np.ndarray], dtype: str) -> None:
    store = densefeat.open_store(tmp_path / "s")
    with safe_open(convert(store, "safetensors", tmp_path / "a.safetensors"), "np") as tensors:
        assert set(tensors.keys()) == {*MAPS, "width", "height"}
        for name, values in features.items():
            assert tensors.get_tensor(name).dtype == dtype
            assert np.array_equal(tensors.get_tensor(name), values)
        assert np.array_equal(tensors.get_tensor("width"), np.arange(25))
        told = tensors.metadata()
    assert json.loads(told["path"]) == store.keys.tolist()
    assert json.loads(told["label"]) == store.labels.tolist()
    assert json.loads(told["provenance"]) == PROVENANCE


def test_datasets(tmp_path: Path, features: dict[str, np.ndarray], dtype: str) -> None:
    import datasets

    store = densefeat.open_store(tmp_path / "s")
    out = convert(store, "datasets", tmp_path / "d")
    loaded = datasets.load_from_disk(out)
    assert loaded.column_names == ["path", "label", "width", "height", *MAPS]
    assert loaded.features["block2"] == datasets.Sequence(datasets.Value(dtype), length=24)
    assert loaded["path"][:] == store.keys.tolist()
    assert loaded["label"][:] == store.labels.tolist()
    for name, values in features.items():
        assert np.array_equal(loaded.data.column(name).combine_chunks().flatten().to_numpy().reshape(values.shape), values)
    doubled = loaded.map(lambda row: {"twice": row["width"] * 2}, load_from_cache_file=False)
    assert doubled["twice"][:] == list(range(0, 50, 2))
    assert json.loads((out / "provenance.json").read_text("utf-8")) == PROVENANCE
    other = datasets.load_from_disk(convert(store, "datasets", tmp_path / "other"))
    assert other._fingerprint != loaded._fingerprint  # what its caches go by


def test_csv(tmp_path: Path, features: dict[str, np.ndarray]) -> None:
    store = densefeat.open_store(tmp_path / "s")
    out = convert(store, "csv", tmp_path / "a.csv", ["block1", "block2"])
    with open(out, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    vectors = [f"block1_{i}" for i in range(3)] + [f"block2_{i}" for i in range(24)]
    assert header == ["path", "label", "width", "height", *vectors]
    assert [row[0] for row in rows] == store.keys.tolist()
    table = pd.read_csv(out)
    assert table["label"].fillna("").tolist() == [label or "" for label in store.labels]
    expected = np.concatenate([features["block1"], features["block2"].reshape(25, 24)], 1)
    assert np.array_equal(table[vectors].to_numpy(np.float32), expected)
    assert json.loads((tmp_path / "a.provenance.json").read_text("utf-8")) == PROVENANCE


@pytest.mark.parametrize("to", _FORMATS)
def test_a_single_file_without_labels_and_rows(tmp_path: Path, to: str) -> None:
    write_rows(tmp_path / "e.parquet", random_features(0), 0, 0, labelled=False)
    out = convert(tmp_path / "e.parquet", to, tmp_path / f"out.{to}")
    if to == "npy":
        assert np.load(out / "block1.npy", mmap_mode=None).shape == (0, 3)
    elif to == "npz":
        assert np.load(out)["path"].shape == (0,)
    elif to == "datasets":
        import datasets

        assert len(datasets.load_from_disk(out)) == 0
    elif to == "csv":
        assert out.read_text().count("\n") == 1
    else:
        with safe_open(out, "np") as tensors:
            assert tensors.get_tensor("block1").shape == (0, 3)
            assert tensors.metadata()["path"] == "[]"


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["block2"], ["block2"]),
        (["2", "1"], ["block1", "block1_max", "block2"]),
        (["block1_max"], ["block1_max"]),
        (["1"], ["block1", "block1_max"]),
    ],
)
def test_columns(tmp_path: Path, columns: list[str], chosen: list[str]) -> None:
    write_store(tmp_path / "s", 2, shapes=MAPS)
    with np.load(convert(tmp_path / "s", "npz", tmp_path / "a.npz", columns)) as arrays:
        assert [name for name in arrays if name.startswith("block")] == chosen


@pytest.mark.parametrize("to", _FORMATS)
def test_an_error_leaves_nothing(tmp_path: Path, to: str) -> None:
    write_store(tmp_path / "s")
    flip_bit(tmp_path / "s/data/part-00002.parquet", 100)
    (tmp_path / "here").mkdir()
    with pytest.raises(OutputError, match=r"part-00002\.parquet: damaged"):
        convert(tmp_path / "s", to, tmp_path / "here/out")
    assert os.listdir(tmp_path / "here") == []


@pytest.mark.parametrize("to", _FORMATS)
def test_a_full_disk_is_one_clear_error(tmp_path: Path, to: str) -> None:
    write_store(tmp_path / "s", 400, 50, {"block1": (512,)})
    (tmp_path / "here").mkdir()
    with pytest.raises(OutputError, match="here/out' cannot be written: .*File too large"), limit_file_size(300_000):
        convert(tmp_path / "s", to, tmp_path / "here/out")
    assert os.listdir(tmp_path / "here") == []


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"to": "xml"}, UsageError, "format 'xml': choose one of npy, npz, safetensors, datasets, csv"),
        ({"columns": ["block7"]}, UsageError, "has no vectors 'block7': it has block1, block2"),
        ({"columns": ["path"]}, UsageError, "has no vectors 'path'"),
        ({"columns": []}, UsageError, "no columns chosen"),
        ({"store": "half"}, UsageError, r"unfinished, 20 of 30 images done: finish its extraction first"),
        ({"store": "nowhere"}, UsageError, "no such file or folder"),
        ({"out": "file"}, OutputError, "exists: remove it or give another name"),
        ({"out": "folder"}, OutputError, "exists: remove it"),
        ({"out": "link"}, OutputError, "exists: remove it"),
        ({"out": "nowhere/out"}, OutputError, "cannot be written: No such file"),
    ],
)
def test_wrong_use(tmp_path: Path, kwargs: dict, error: type[Exception], match: str) -> None:
    write_store(tmp_path / "s")
    write_store(tmp_path / "half", finished=2)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nothing")
    given = {"store": "s", "to": "npy", "out": "out"} | kwargs
    with pytest.raises(error, match=match):
        convert(tmp_path / given.pop("store"), given.pop("to"), tmp_path / given.pop("out"), **given)
    assert not (tmp_path / "out").exists()


def test_headers_that_safetensors_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "s")
    monkeypatch.setattr("densefeat.store.conversion._HEADER_BYTES", 600)
    with pytest.raises(UsageError, match="too many paths for a safetensors header of 600 bytes: convert to npy"):
        convert(tmp_path / "s", "safetensors", tmp_path / "out")


def test_no_column_leads_out_of_the_folder(tmp_path: Path) -> None:
    write_rows(tmp_path / "e.parquet", random_features(1, {"../block1": (2,)}), 0, 1)
    with pytest.raises(OutputError, match="column '../block1' cannot be a file's name"):
        convert(tmp_path / "e.parquet", "npy", tmp_path / "out")
    assert os.listdir(tmp_path) == ["e.parquet"]
