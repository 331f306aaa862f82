"""The segmenter's file: what is written comes back; damage and other files are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from densefeat.errors import DensefeatError, UsageError, WeightsError
from densefeat.labels import Targets
from densefeat.probing import KnnHead, LinearHead
from densefeat.segmentation import Segmenter, load_segmenter
from densefeat.segmentation.grid_net import BlockGrid
from densefeat.segmentation.segmenter import SEGMENTER_FILE, save_segmenter

NEEDED = ("model", "weights", "blocks", "pool", "tap", "precision", "preprocessing")
GRIDS = (BlockGrid("block1", "block1", 3, 4), BlockGrid("block2", "block2", 2, 8))


def make_segmenter(knn: bool = False) -> Segmenter:
    generator = np.random.default_rng(0)
    head = LinearHead(generator.normal(size=(2, 5)).astype(np.float32), np.zeros(2, np.float32))
    if knn:
        features = generator.normal(size=(6, 5)).astype(np.float16)
        head = KnnHead(features, Targets("single", ("sky", "tree"), np.array([0, 1] * 3)), 2)  # type: ignore[assignment]
    return Segmenter((0, 300), ("sky", "tree"), GRIDS, head, np.array([0, -1], np.float32), {"model": "m"}, {"C": 1})


@pytest.mark.parametrize("knn", [False, True])
def test_what_is_written_comes_back(tmp_path: Path, knn: bool) -> None:
    made = make_segmenter(knn)
    save_segmenter(tmp_path / "segmenter.safetensors", made)
    found = load_segmenter(tmp_path)
    for name in ("values", "names", "grids", "provenance", "told"):
        assert getattr(found, name) == getattr(made, name)
    np.testing.assert_array_equal(found.log_prior, made.log_prior)
    x = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    np.testing.assert_array_equal(found.head.scores(x), made.head.scores(x))


def rewrite(path: Path, metadata: dict[str, object], **arrays: np.ndarray) -> None:
    """Write a segmenter's file again with other metadata and tensors, without a checksum."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        known = json.loads(file.metadata()[SEGMENTER_FILE.key])
    save_file(load_file(path) | arrays, path, {SEGMENTER_FILE.key: json.dumps(known | metadata)})


@pytest.mark.parametrize(
    ("metadata", "arrays"),
    [
        ({"values": [0]}, {}),
        ({"values": [0, 0]}, {}),
        ({"values": [0, 70_000]}, {}),
        ({"values": [0, 1.5]}, {}),
        ({"names": ["sky", "sky"]}, {}),
        ({"names": ["sky"]}, {}),
        ({"grids": []}, {}),
        ({"grids": [{"column": "block1", "tap": "block1", "channels": 5, "stride": 0}]}, {}),
        ({"grids": [{"column": "block1", "tap": "block1", "channels": 4, "stride": 1}]}, {}),
        ({"grids": [{"column": "block1", "tap": "block1", "channels": "5", "stride": 1}]}, {}),
        ({"grids": [{"column": "block1", "tap": "block1", "channels": 5, "stride": 1, "more": 1}]}, {}),
        ({"grids": 3}, {}),
        ({"provenance": []}, {}),
        ({"head": "attentive"}, {}),
        ({"squeeze": True}, {}),
        ({}, {"log_prior": np.zeros(3, np.float32)}),
        ({}, {"log_prior": np.array([0, np.nan], np.float32)}),
        ({}, {"weight": np.full((2, 5), np.inf, np.float32)}),
        ({}, {"weight": np.zeros((2, 6), np.float32)}),
    ],
)  # fmt: skip
def test_damaged_content(tmp_path: Path, metadata: dict[str, object], arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "segmenter.safetensors"
    save_segmenter(path, make_segmenter())
    rewrite(path, {})
    load_segmenter(path)
    rewrite(path, metadata, **arrays)
    with pytest.raises(WeightsError, match="damaged, or not a segmenter"):
        load_segmenter(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file; give the folder"):
        load_segmenter(tmp_path)
    path = tmp_path / "segmenter.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match="not a segmenter of densefeat"):
        load_segmenter(path)
    save_segmenter(path, make_segmenter())
    rewrite(path, {"version": 2})
    with pytest.raises(WeightsError, match="its version is 2"):
        load_segmenter(path)


@pytest.mark.parametrize("place", [12, 300, -1])
def test_a_changed_byte_is_noticed(tmp_path: Path, place: int) -> None:
    path = tmp_path / "segmenter.safetensors"
    save_segmenter(path, make_segmenter())
    data = bytearray(path.read_bytes())
    data[place] ^= 8
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="segmenter"):
        load_segmenter(path)


def test_a_network_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this segmenter does not record what made it"):
        make_segmenter().network(device="cpu")
    broken = replace(make_segmenter(), provenance=dict.fromkeys(NEEDED, 3))
    with pytest.raises(DensefeatError):
        broken.network(device="cpu")
