"""The file of a detector: what is saved is loaded, and anything else is refused by its name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from densefeat.anomaly.alarms import Alarms
from densefeat.anomaly.bank import MemoryBank
from densefeat.anomaly.detector import Detector, load_detector, save_detector
from densefeat.anomaly.gaussians import PositionGaussians
from densefeat.errors import WeightsError
from densefeat.features import FeatureExtractor, GridRule
from support.helpers import BUNDLED


@pytest.fixture(scope="module")
def provenance() -> dict[str, Any]:
    extractor = FeatureExtractor(BUNDLED, (2, 3), "none", device="cpu")
    return {
        **extractor.provenance, "preprocessing": extractor.preprocessing.to_json(), "blocks": ["block2", "block3"], "tap": "norm",
        "pool": ["none"], "precision": "fp32", "decoder": "pillow",
    }  # fmt: skip


@pytest.fixture(params=["patchcore", "padim"])
def detector(request: pytest.FixtureRequest, provenance: dict[str, Any]) -> Detector:
    generator = np.random.default_rng(0)
    normal: MemoryBank | PositionGaussians = MemoryBank(generator.normal(size=(20, 16)).astype(np.float16))
    if request.param == "padim":
        arrays = [generator.normal(size=shape).astype(np.float32) for shape in ((4, 4, 5), (4, 4, 5, 5))]
        normal = PositionGaussians(*arrays)
    alarms = Alarms(np.linspace(1, 2, 30, dtype=np.float32), 0.1)
    return Detector(normal, alarms, GridRule((2, 3), 8, average=True, dims=16), (4, 4), provenance, 50)


def test_what_is_saved_is_loaded(detector: Detector, tmp_path: Path) -> None:
    save_detector(tmp_path / "detector.safetensors", detector)
    loaded = load_detector(tmp_path)
    for name, array in detector.normal.arrays.items():
        np.testing.assert_array_equal(loaded.normal.arrays[name], array)
    assert (loaded.method, loaded.rule, loaded.shape, loaded.learnt) == (detector.method, detector.rule, (4, 4), 50)
    assert loaded.provenance == detector.provenance
    grid = torch.randn(2, 16, 4, 4)
    assert torch.equal(loaded.measure(grid)[1], detector.measure(grid)[1])
    assert loaded.alarms.threshold == detector.alarms.threshold
    assert loaded.extractor(device="cpu").forward_grid(torch.zeros(1, 3, 32, 32), loaded.rule).shape == (1, 16, 4, 4)
    first = (tmp_path / "detector.safetensors").read_bytes()
    save_detector(tmp_path / "detector.safetensors", loaded)
    assert (tmp_path / "detector.safetensors").read_bytes() == first


def write(path: Path, detector: Detector, changes: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write a detector's file by hand, without its checksum, which anybody could make anew."""
    save_detector(path, detector)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = json.loads(header["__metadata__"]["densefeat_detector"]) | changes
    arrays = {name: array for name, array in (load_file(path) | tensors).items() if array is not None}
    path.unlink()
    save_file(arrays, path, {"densefeat_detector": json.dumps(metadata)})


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        ({"version": 2}, {}, "its version is 2, this one reads up to 1: update densefeat"),
        ({"version": True}, {}, "its version is True"),
        ({"method": "magic"}, {}, "a method 'magic'"),
        ({"shape": [4, 5]}, {}, r"a grid of shape \[4, 5\]"),
        ({"rate": 2.0}, {}, "a false-alarm rate of 200 %"),
        ({"rate": 0.001}, {}, "30 held-out scores, in order or not, for a rate of 0.001"),
        ({"rate": None}, {}, "a rate of None"),
        ({"rule": {"blocks": [2, 3], "stride": 0}}, {}, "records no grid of features"),
        ({"rule": {"blocks": [2, 3], "stride": 8, "dims": 2**40}}, {}, "records no grid of features"),
        ({"provenance": {}}, {}, "KeyError"),
        ({}, {"held_out": np.array([2, 1] * 15, np.float32)}, "30 held-out scores, in order or not"),
        ({}, {"held_out": np.full(30, np.nan, np.float32)}, "30 numbers of held_out are NaN or infinite"),
        ({}, {"held_out": None}, "KeyError: 'held_out'"),
        ({}, {"held_out": np.zeros(0, np.float32)}, "held_out is float32"),
    ],
)
def test_wrong_content(detector: Detector, tmp_path: Path, changes: dict[str, Any], tensors: Any, message: str) -> None:
    write(tmp_path / "d.safetensors", detector, changes, tensors)
    with pytest.raises(WeightsError, match=rf"^detector .*d.safetensors'.*{message}"):
        load_detector(tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    "features",
    [np.zeros((20, 16), np.float32), np.zeros((20, 15), np.float16), np.zeros((0, 16), np.float16), np.full((2, 16), np.inf, np.float16)],
)  # fmt: skip
def test_wrong_banks(provenance: dict[str, Any], tmp_path: Path, features: np.ndarray) -> None:
    good = Detector(
        MemoryBank(np.zeros((2, 16), np.float16)), Alarms(np.ones(30, np.float32), 0.1), GridRule((2, 3), 8, dims=16), (4, 4), provenance, 5
    )  # fmt: skip
    save_detector(tmp_path / "good.safetensors", good)
    load_detector(tmp_path / "good.safetensors")
    write(tmp_path / "d.safetensors", good, {}, {"features": features})
    with pytest.raises(WeightsError, match="damaged, or not a detector"):
        load_detector(tmp_path / "d.safetensors")


def test_damage_and_other_files(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    save_detector(path, detector)
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged, or changed by another program"):
        load_detector(path)
    path.write_bytes(content[:200])
    with pytest.raises(WeightsError, match="damaged"):
        load_detector(path)
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match="not a detector of densefeat"):
        load_detector(path)
    with pytest.raises(WeightsError, match="no such file"):
        load_detector(tmp_path / "nowhere")


def test_other_weights_are_refused(detector: Detector) -> None:
    weights = detector.provenance["weights"] | {"sha256": "0" * 64}
    with pytest.raises(Exception, match="are others than those of this detector"):
        replace(detector, provenance=detector.provenance | {"weights": weights}).extractor(device="cpu")
