"""Probes as graphs: from pixels to the answer that `densefeat predict` gives."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from densefeat import load_probe
from densefeat.errors import UsageError
from densefeat.export import export_model
from densefeat.extraction import extract
from densefeat.labels.targets import Targets
from densefeat.probing import probe
from densefeat.probing.fitting import LinearHead
from densefeat.probing.knn import KnnHead
from densefeat.probing.layers_head import LayersHead
from densefeat.probing.probe_file import save_probe
from support.commands import run_command
from support.docs_examples import DOCS
from support.graphs import SUFFIX, read_metadata, run_file
from support.helpers import relative_difference
from support.tiny_net import TINY, tiny_state, write_tiny_weights

MOVED = {"source": "gone.safetensors", "sha256": None, "license": None}
LAYERS = (12, 6, 6, 12, 6, 6)  # the input and two layers of blocks 1 and 2


def draw_linear(classes: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(classes)
    return random.standard_normal((classes, features)).astype(np.float32), random.standard_normal(classes).astype(np.float32)


def draw_neighbours() -> KnnHead:
    rows = np.random.default_rng(0).random((20, sum(LAYERS)), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return KnnHead(rows, Targets("single", ("left", "right"), np.arange(20) % 2), 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photographs: list[Image.Image]) -> Path:
    """Halves of photographs as files in ``photos``, and probes on the raw features of blocks 1 and 2, by kind of head."""
    folder = tmp_path_factory.mktemp("made")
    for i, photograph in enumerate(photographs):
        width, height = photograph.size
        for name, box in {"left": (0, 0, width // 2, height), "right": (width // 2, 0, width, height)}.items():
            path = folder / f"photos/{name}/{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph.crop(box).save(path)
    extract(folder / "photos", folder / "store", TINY, write_tiny_weights(folder), device="cpu", labels="folder", tap="raw")
    probe(folder / "store", folder / "logreg")
    fitted = replace(load_probe(folder / "logreg"), columns=("block1", "block2"))
    assert fitted.certainty is not None
    assert fitted.certainty.outliers is not None
    heads = {  # of the second layer of block 2 nothing is kept
        "layers": LayersHead(LAYERS, np.array([3, 14, 40]), *draw_linear(2, 3)),
        "neighbours": draw_neighbours(),
    }
    for name, head in heads.items():
        save_probe(folder / f"{name}.safetensors", replace(fitted, head=head))
    numbers = LinearHead(*draw_linear(1, sum(LAYERS)), True)
    save_probe(folder / "numbers.safetensors", replace(fitted, task="regression", classes=(), head=numbers, certainty=None))
    return folder


def assert_same_p_values(found: np.ndarray, expected: np.ndarray | None) -> None:
    """Of the two validation rows themselves, which are among the images, rounding decides whether they are below themselves."""
    assert expected is not None
    assert np.sum(np.abs(found - expected) > 2e-4) <= 2


def find_model(made: Path, kind: str) -> str:
    return str(made / kind if kind == "logreg" else made / f"{kind}.safetensors")


LONGER = [("layers", "onnx"), ("layers", "openvino"), ("neighbours", "onnx"), ("neighbours", "openvino"), ("numbers", "onnx")]


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        ("layers", "torch-export"),
        ("neighbours", "torch-export"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in LONGER),
    ],
)
def test_a_probe_as_one_graph(made: Path, tmp_path: Path, kind: str, to: str) -> None:
    model, path = find_model(made, kind), tmp_path / f"probe{SUFFIX[to]}"
    with_ood = kind == "neighbours"
    result = export_model(model, to, path, input="pixels", ood=with_ood)
    loaded = load_probe(model)
    extractor = loaded.extractor(device="cpu")
    files = sorted((made / "photos").rglob("*.png"))
    resize = extractor.preprocessing.geometry()
    pixels = torch.stack([resize(Image.open(file)) for file in files]).permute(0, 2, 3, 1).contiguous()
    features = {name: values.numpy() for name, values in extractor(files).items()}
    expected = loaded.scores(features)
    found, facts = run_file(to, path, pixels), read_metadata(to, path)
    assert facts == result.metadata
    assert list(found) == [output["name"] for output in facts["outputs"]]
    assert (facts["kind"], facts["task"]) == ("answer", loaded.task)
    assert facts["input"]["shape"] == ["batch", "32", "32", "3"]
    assert str(made) not in json.dumps(facts)
    assert result.arithmetic is not None
    assert result.speed is not None
    if kind == "numbers":
        assert "label_names" not in facts
        assert facts["outputs"] == [{"name": "value", "shape": ["batch"]}, {"name": "features", "shape": ["batch", 48]}]
        np.testing.assert_allclose(found["value"], expected, rtol=1e-4)
        return
    assert facts["label_names"] == ["left", "right"]
    np.testing.assert_allclose(found["scores"], expected, atol=1e-4 * np.abs(expected).max())
    assert loaded.certainty is not None
    np.testing.assert_allclose(found["probabilities"], loaded.certainty.probabilities(expected), atol=1e-4)
    assert ("ood" in found) == with_ood
    if with_ood:
        assert_same_p_values(found["ood"], loaded.p_values(features))
    np.testing.assert_array_equal(found["label"], expected.argmax(1))
    assert found["label"].dtype == np.int64
    if kind == "layers":
        assert facts["probe"]["features"] == {"block1": [3, 14], "block2": [16]}
        assert found["features"].shape == (24, 3)
        stem, block1, transition = 1024 * 3 * 12 * 9, 1024 * (12 * 24 + 18 * 24 + 2 * 24 * 6 * 9), 1024 * 24 * 12
        lengths = 2 * (12 + 6 + 6) * 3  # of three layers, from the squares of their channels, and back to these
        assert result.arithmetic.graph == stem + block1 + transition + 256 * (12 * 24 + 24 * 6 * 9) + lengths + 3 * 2


def test_the_example_answers_as_predict_does_without_densefeat_and_torch(made: Path, tmp_path: Path) -> None:
    """By ONNX Runtime, numpy and Pillow alone, on photographs in files."""
    files = sorted((made / "photos").rglob("*.png"))
    predict = ("predict", "--model", made / "logreg", "--images", made / "photos", "--out", tmp_path / "o", "--device", "cpu")
    run_command(*predict, check=True)
    with open(tmp_path / "o/predictions.csv", newline="") as file:
        predicted = list(csv.DictReader(file))
    export_model(str(made / "logreg"), "onnx", tmp_path / "probe.onnx", input="pixels")
    bare = "sys.modules |= dict.fromkeys(('densefeat', 'densefeat_cli', 'torch', 'torchvision', 'timm'))"
    code = f"import runpy, sys; {bare}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-c", code, DOCS / "serve_probe.py", tmp_path / "probe.onnx", *files]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    assert len(lines) == len(files) == 24
    answered = []
    for line, row in zip(lines, predicted, strict=True):
        path, label, probability, ood = line.split("\t")
        assert path == str(made / "photos" / row["path"])
        assert label == row["predicted"]
        assert float(probability) == pytest.approx(float(row["probability"]), abs=2e-4)
        answered.append(float(ood))
    assert_same_p_values(np.array(answered), np.array([float(row["ood"]) for row in predicted]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(to="safetensors", out="a.safetensors"), "a probe becomes a graph, .*: choose onnx, openvino or torch-export"),
        (dict(outputs="logits"), "outputs 'logits': the graph of a probe gives its answer; for logits export the network"),
        (dict(outputs="features"), "for features export the network"),
        (dict(blocks=1), "a probe records its blocks, tap, pool and image size: leave these options out"),
        (dict(tap="raw"), "a probe records its blocks"),
        (dict(pool="max"), "a probe records its blocks"),
        (dict(image_size=64), "a probe records its blocks"),
        (dict(input="float16"), "input 'float16'"),
    ],
)
def test_wrong_use(made: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = dict(model=find_model(made, "logreg"), to="onnx", out="a.onnx") | arguments
    with pytest.raises(UsageError, match=message):
        export_model(**options | {"out": tmp_path / options["out"]})
    assert list(tmp_path.iterdir()) == []


def test_a_network_tells_no_outliers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--no-ood: only the graph of a probe tells outliers"):
        export_model(TINY, "onnx", tmp_path / "a.onnx", ood=False)


def test_damaged_probes_and_others(made: Path, tmp_path: Path) -> None:
    fitted = load_probe(made / "logreg")
    (tmp_path / "cut.safetensors").write_bytes((made / "logreg/probe.safetensors").read_bytes()[:-9])
    (tmp_path / "text.txt").write_text("a probe")
    save_probe(tmp_path / "wide.safetensors", replace(fitted, head=LinearHead(*draw_linear(2, 7)), certainty=None))
    save_probe(tmp_path / "moved.safetensors", replace(fitted, provenance=fitted.provenance | {"weights": MOVED}))
    save_probe(tmp_path / "bare.safetensors", replace(fitted, provenance={}))
    for name, message in {
        "cut.safetensors": "cut.safetensors'",
        "text.txt": "text.txt'",
        "wide.safetensors": "reads 7 features, and its network makes 24: damaged",
        "moved.safetensors": "which is not there now",
        "bare.safetensors": "does not record what made it",
    }.items():
        finished = run_command("export", tmp_path / name, "--to", "onnx", "--out", tmp_path / "a.onnx")
        assert finished.exit_code in (1, 2)
        assert finished.stdout == ""
        assert finished.stderr.count("\n") == 1, finished.stderr
        assert message in finished.stderr
    assert not (tmp_path / "a.onnx").exists()
    weights = made / "tiny.safetensors"
    result = export_model(str(tmp_path / "moved.safetensors"), "torch-export", tmp_path / "a.pt2", weights=weights)
    assert result.metadata["weights"]["source"] == "tiny.safetensors"


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=pytest.mark.slow), "torch-export"])
def test_the_answer_of_a_network_with_a_classifier(tmp_path: Path, to: str) -> None:
    model = timm.create_model(TINY)
    model.load_state_dict(tiny_state())
    path = tmp_path / f"network{SUFFIX[to]}"
    result = export_model(model, to, path, outputs="answer")
    assert (result.metadata["kind"], result.metadata["task"]) == ("answer", "single")
    assert result.metadata["input"]["sizes"]["kind"] == "any"
    assert result.arithmetic is None
    images = torch.randn(3, 3, 64, 70)
    found = run_file(to, path, images)
    with torch.no_grad():
        logits = model.eval()(images)
    assert list(found) == ["scores", "probabilities", "label"]
    assert relative_difference(found["scores"], logits) < 1e-5
    assert relative_difference(found["probabilities"], logits.softmax(1)) < 1e-5
    assert found["label"].tolist() == logits.argmax(1).tolist()


def test_what_the_command_prints(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe.pt2"
    finished = run_command("export", find_model(made, "layers"), "--to", "torch-export", "--out", out, check=True)
    assert finished.stderr == ""
    first, second, third, fourth, fifth = finished.stdout.splitlines()
    assert first == f"wrote {out}: {TINY} (scores batch×2, probabilities batch×2, label batch, ood batch, features batch×3)"
    assert second == "input: float32 batch×3×32×32, sizes: 32 by 32 alone"
    assert "label 0.0e+00" in third
    assert re.fullmatch(
        r"arithmetic of an image: 0\.00\d+ GMAC in the graph, 0\.005\d+ GMAC in the whole network \(\d\d%\)", fourth
    )
    speeds = (
        r"\d+\.\d\d times as fast as a graph of all blocks in torch .*: \S+ ms an image against \S+ ms \(medians of \d+ .*\)"
    )
    assert re.fullmatch(speeds, fifth)
