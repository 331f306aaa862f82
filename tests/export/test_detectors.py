"""Detectors of anomalies as graphs: from pixels to what `densefeat anomaly score` says."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densefeat import open_store
from densefeat.anomaly import fit_detector, load_detector, score_images
from densefeat.errors import UsageError, WeightsError
from densefeat.export import export_model
from densefeat.nets import file_sha256
from support.commands import run_command
from support.graphs import SUFFIX, read_metadata, run_file
from support.tiny_net import TINY, write_tiny_weights

METHODS = ("patchcore", "padim")
SIZE = 64
_ROUNDING = 1e-2  # of the largest value: `anomaly score` rounds features to float16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photographs: list[Image.Image]) -> Path:
    """Pieces of one photograph in ``good``, of all and noise in ``new``, and a detector of each method with the scores that it gives."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "good").mkdir()
    (folder / "new").mkdir()
    width, height = photographs[0].size
    for number in range(45):
        left, top = (number % 9) * (width - 96) // 8, (number // 9) * (height - 80) // 4
        photographs[0].crop((left, top, left + 96, top + 80)).save(folder / f"good/{number:02}.png")
    for number, photograph in enumerate(photographs):
        photograph.crop((0, 0, 120, 90)).save(folder / f"new/{number:02}.png")
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "new/noise.png")
    weights = write_tiny_weights(folder)
    for method in METHODS:
        path = fit_detector(
            folder / "good",
            folder / method,
            model=TINY,
            weights=weights,
            method=method,
            image_size=SIZE,
            device="cpu",
            false_alarms=0.3,
        ).path
        score_images(path, folder / "new", folder / f"{method}-scores", device="cpu")
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("to", [*(pytest.param(to, marks=pytest.mark.slow) for to in ("onnx", "openvino")), "torch-export"])
def test_a_detector_as_one_graph(made: Path, tmp_path: Path, method: str, to: str) -> None:
    path = tmp_path / f"detector{SUFFIX[to]}"
    result = export_model(str(made / method), to, path, input="pixels")
    files = sorted((made / "new").iterdir())
    detector = load_detector(made / method)
    alarms = detector.alarms
    pixels = np.stack([Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for file in files])
    found = run_file(to, path, torch.from_numpy(pixels))
    with open(made / f"{method}-scores/anomalies.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = {name: np.array([float(row[name]) for row in rows]) for name in ("score", "p_value")}
    assert len(rows) == len(found["score"])
    np.testing.assert_allclose(found["score"], expected["score"], atol=_ROUNDING * expected["score"].max())
    held_out = len(alarms.held_out)
    np.testing.assert_allclose(found["p_value"], expected["p_value"], atol=1.1 / (held_out + 1))  # one may change sides
    maps = open_store(made / f"{method}-scores/scores")["map"].reshape(found["distances"].shape)
    np.testing.assert_allclose(found["distances"], maps, atol=_ROUNDING * maps.max())
    np.testing.assert_array_equal(found["anomalous"], found["score"] > alarms.threshold)
    assert found["anomalous"].any()
    assert not found["anomalous"].all()
    extractor = detector.extractor(device="cpu")
    grid = extractor.forward_grid(extractor.prepare(files), detector.rule)
    for name, values in zip(("score", "distances"), detector.normal(grid), strict=True):
        np.testing.assert_allclose(found[name], values, atol=1e-4 * float(values.max()))
    facts = read_metadata(to, path)
    assert facts == result.metadata
    assert facts["detector"] == {
        "file_sha256": file_sha256(made / method / "detector.safetensors"),
        "method": method,
        "threshold": alarms.threshold,
        "false_alarms": 0.3,
        "held_out": held_out,
        "stride": detector.rule.stride,
    }
    assert facts["input"]["shape"] == ["batch", str(SIZE), str(SIZE), "3"]
    assert [output["name"] for output in facts["outputs"]] == ["score", "p_value", "anomalous", "distances"]
    assert str(made) not in json.dumps(facts)


def test_the_command_takes_the_file_of_a_detector(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "detector.pt2"
    run = run_command("export", made / "padim/detector.safetensors", "--to", "torch-export", "--out", path, check=True)
    assert "score batch, p_value batch, anomalous batch, distances" in run.stdout
    assert "alone" in run.stdout
    assert list(run_file("torch-export", path, torch.zeros(2, 3, SIZE, SIZE))) == ["score", "p_value", "anomalous", "distances"]


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("safetensors", {}, "a detector becomes a graph, from images to its answer: choose onnx"),
        ("onnx", {"outputs": "maps"}, "the graph of a detector gives its answer; for maps export the network"),
        ("onnx", {"blocks": 1}, "a detector records its blocks"),
        ("onnx", {"image_size": 32}, "a detector records its blocks, tap, pool and image size"),
        ("onnx", {"ood": False}, "--no-ood: only the graph of a probe tells outliers"),
    ],
)
def test_what_a_detector_records_is_not_asked_for(made: Path, tmp_path: Path, to: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_model(str(made / "padim"), to, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("direct", [True, False])
def test_a_truncated_file_is_called_a_detector(made: Path, tmp_path: Path, direct: bool) -> None:
    file = tmp_path / "detector.safetensors"
    file.write_bytes((made / METHODS[0] / file.name).read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"^detector .*: damaged"):
        export_model(str(file if direct else tmp_path), "onnx", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["detector.safetensors"]
