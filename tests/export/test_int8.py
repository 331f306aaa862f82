"""Graphs in int8: close to the plain network in their own runtimes, or nothing is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densefeat import DensefeatError, FeatureExtractor, UsageError
from densefeat.export.formats import GRAPHS
from densefeat.export.job import export_model
from support.helpers import BUNDLED
from support.labelled_images import encode_png
from support.tiny_net import TINY, write_tiny_weights

COUNT = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, pieces: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        (folder / f"{number:03}.png").write_bytes(encode_png(pieces[number % len(pieces)] + np.uint8(number // len(pieces))))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("input", ["float", "pixels"])
@pytest.mark.parametrize(("to", "suffix", "batch"), [("onnx", "onnx", 5), ("openvino", "xml", 1)])
def test_a_graph_in_int8(
    to: str, suffix: str, batch: int, input: str, images: Path, pieces: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / f"network.{suffix}"
    result = export_model(BUNDLED, to, path, int8=True, calibration=images, input=input)
    assert result.cosines is not None
    extractor = FeatureExtractor(BUNDLED, device="cpu")
    x = torch.from_numpy(np.stack([np.asarray(Image.fromarray(piece).resize((32, 32))) for piece in pieces[:batch]]))
    normalised = extractor.preprocessing.normalize(x.permute(0, 3, 1, 2).contiguous())
    _, run = GRAPHS[to].open(path)
    for (name, expected), output in zip(
        extractor.forward(normalised).items(), run(x if input == "pixels" else normalised), strict=True
    ):
        assert 0.8 < torch.cosine_similarity(output, expected).min() < 1 - 1e-6
        median, least = result.cosines[name]
        assert median > 0.99
        assert 0.8 < least <= median
    facts = result.metadata
    assert (facts["precision"], facts["calibrated_on"]) == ("int8", 31)  # of 41 files 9 are held out, and one is broken
    assert facts["input"]["shape"][0] == {"onnx": "batch", "openvino": "1"}[to]
    assert facts["input"]["sizes"]["kind"] == "fixed"
    assert str(images).encode() not in path.read_bytes()
    plain = export_model(BUNDLED, to, tmp_path / f"plain.{suffix}", input=input)
    assert "precision" not in plain.metadata
    sizes = [
        sum(file.stat().st_size for file in tmp_path.glob(f"{name}.{suffix if to == 'onnx' else 'bin'}"))
        for name in ("network", "plain")
    ]
    assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.slow
def test_the_metadata_are_in_the_file(images: Path, tmp_path: Path) -> None:
    import onnx

    result = export_model(BUNDLED, "onnx", tmp_path / "a.onnx", int8=True, calibration=images)
    entries = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(entries["densefeat"]) == json.loads(json.dumps(result.metadata))


@pytest.mark.slow
def test_one_that_falls_short_is_not_written(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DensefeatError, match=r"int8: cosine .*: block3 is below --min-cosine 0.99999") as error:
        export_model(BUNDLED, "onnx", tmp_path / "a.onnx", int8=True, calibration=images, min_cosine=0.99999)
    assert error.value.exit_code == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("onnx", dict(int8=True), "--int8 needs images like those to come: name them by --calibration"),
        ("onnx", dict(calibration="images"), "--calibration is for --int8: give that, too"),
        ("torch-export", dict(int8=True, calibration="images"), "--int8 is for onnx and openvino, not torch-export"),
        ("safetensors", dict(int8=True, calibration="images"), "--int8 is for onnx and openvino, not safetensors"),
        ("onnx", dict(int8=True, calibration="images", min_cosine=2), "min cosine 2: give a number from 0 to 1"),
        ("onnx", dict(int8=True, calibration="nowhere"), "nowhere"),
        ("onnx", dict(int8=True, calibration="few"), "1 images of 'few' can be read to calibrate int8 on, and 1 to compare"),
    ],
)
def test_wrong_use(to: str, options: dict, message: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few").mkdir()
    for name in ("000.png", "001.png"):
        (tmp_path / "few" / name).write_bytes((images / name).read_bytes())
    weights = write_tiny_weights(tmp_path)
    with pytest.raises(UsageError, match=message):
        export_model(TINY, to, tmp_path / "out.onnx", weights=weights, **options)
    assert not (tmp_path / "out.onnx").exists()
