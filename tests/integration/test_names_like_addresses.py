"""Folders whose names pyarrow would take for addresses: every command writes to them and reads them."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import densefeat
from densefeat import UsageError
from support.commands import run_command
from support.helpers import BUNDLED


@pytest.fixture
def folder(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run_command("extract", "--images", photo_folder, "--out", "emb:v2", "--model", BUNDLED, "--labels", "folder", check=True)
    return tmp_path


def test_every_command_reads_and_writes_them(folder: Path, photo_folder: Path) -> None:
    rows = pq.read_table(folder / "emb:v2/data/part-00000.parquet")
    assert len(rows) == len(densefeat.open_store("emb:v2")) == 12
    assert densefeat.open_store("emb:v2").dataset().to_table().equals(rows)
    assert "emb:v2 (folder, parts: 1)" in run_command("info", "emb:v2", check=True).stdout
    assert run_command("search", "emb:v2", "--key", rows["path"][0].as_py(), check=True).stdout
    for to, out in (("npy", "a:1"), ("npz", "a:1.npz"), ("safetensors", "a:1.safetensors"), ("csv", "a:1.csv")):
        run_command("convert", "emb:v2", "--to", to, "--out", out, check=True)
    assert np.load(folder / "a:1/block3.npy").shape == (12, 342)
    assert pq.read_metadata(folder / "a:1/rows.parquet").num_rows == 12
    assert len((folder / "a:1.csv").read_text().splitlines()) == 13
    run_command("map", "emb:v2", "--out", "m:1.html", "--images", photo_folder, check=True)
    assert pq.read_metadata(folder / "m:1.parquet").num_rows == 12
    (photo_folder / "new.jpg").write_bytes((photo_folder / "china/01.jpg").read_bytes())
    again = run_command("extract", "--images", photo_folder, "--out", "emb:v2", "--model", BUNDLED, "--labels", "folder",
                        "--update", check=True)  # fmt: skip
    assert "13 rows" in again.stdout
    run_command("extract", "--images", photo_folder, "--out", "e:2.parquet", "--model", BUNDLED, check=True)
    assert "e:2.parquet (single file)" in run_command("info", "e:2.parquet", check=True).stdout


def test_datasets_reads_a_conversion(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    run_command("convert", "emb:v2", "--to", "datasets", "--out", "d:1", check=True)
    assert len(datasets.load_from_disk(str(folder / "d:1"))) == 12


@pytest.mark.parametrize("option", ["base", "weights", "model"])
def test_names_that_are_not_utf8_are_refused_where_a_manifest_would_record_them(option: str, photo_folder: Path) -> None:
    with pytest.raises(UsageError, match=f"{option} .*its name is not UTF-8"):
        densefeat.extract(photo_folder, "emb", **{"model": BUNDLED, option: os.fsdecode(b"caf\xe9")})


@pytest.mark.parametrize("out", ["s3://bucket/emb", "memory://emb.parquet", Path("s3://bucket/emb"), "simplecache::s3://b/e"])
def test_addresses_are_refused_before_any_work(out: str | Path, photo_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"output '.*' is an address: give a path on this machine"):
        densefeat.extract(photo_folder, out, "no such model")
