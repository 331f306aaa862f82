"""From image files to features by the metadata alone, with the function of docs/export.md."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image, ImageOps
from torch import nn

from densefeat import FeatureExtractor
from densefeat.export import export_model
from densefeat.export.metadata import _describe_preprocessing
from densefeat.images.transforms import Preprocessing
from support.docs_examples import DOCS, blocks
from support.helpers import BUNDLED, relative_difference


@pytest.fixture(scope="module")
def prepare() -> Callable[[Image.Image, dict[str, Any]], np.ndarray]:
    """The function that the page shows."""
    namespace: dict[str, Any] = {}
    (text,) = (block.text for block in blocks(DOCS / "export.md") if "def prepare(" in block.text)
    exec(text, namespace)
    return namespace["prepare"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, photographs: list[Image.Image]) -> list[Path]:
    """Photographs, and files that are rotated, transparent, grey, CMYK, thin, smaller than the input, or have a palette."""
    folder = tmp_path_factory.mktemp("files")
    one, other = photographs[3], photographs[8]
    alpha = Image.linear_gradient("L").resize(one.size)
    turned = Image.Exif()
    turned[0x0112] = 6
    images: list[tuple[Image.Image, str, dict[str, Any]]] = [(image, "jpg", {"quality": 92}) for image in photographs]
    images += [
        (one, "jpg", {"exif": turned}),
        (Image.merge("RGBA", (*one.split(), alpha)), "png", {"exif": turned}),
        (Image.merge("LA", (one.convert("L"), alpha)), "png", {}),
        (other.quantize(16), "png", {"transparency": 3}),
        (other.convert("L"), "jpg", {}),
        (other.convert("CMYK"), "jpg", {}),
        (other.resize((301, 37)), "png", {}),
        (other.resize((21, 35)), "png", {}),
    ]
    paths = [folder / f"{i:02}.{suffix}" for i, (_, suffix, _) in enumerate(images)]
    for path, (image, _, options) in zip(paths, images, strict=True):
        image.save(path, **options)
    return paths


def zoomed() -> nn.Module:
    """A network that reads the middle of its images, resized by another filter."""
    torch.manual_seed(0)
    model = timm.create_model("densefeat_densenet40_k12", growth_rate=4, block_config=(2, 2)).eval()
    changed = {"input_size": (3, 50, 50), "crop_pct": 0.83, "interpolation": "bilinear"}
    model.pretrained_cfg = model.default_cfg = model.pretrained_cfg | changed
    return model


@pytest.mark.parametrize("input", ["float", "pixels"])
@pytest.mark.parametrize(
    "make", [pytest.param(lambda: BUNDLED, marks=pytest.mark.slow, id="bundled"), pytest.param(zoomed, id="zoomed")]
)
def test_the_page_gives_the_extractors_features(
    tmp_path: Path, make: Callable[[], Any], input: str, prepare: Callable[..., np.ndarray], files: list[Path]
) -> None:
    export_model(make(), "onnx", tmp_path / "network.onnx", input=input)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["densefeat"])
    expected = FeatureExtractor(make(), decoder="pillow", device="cpu", backend="reference")(files)
    for i, file in enumerate(files):
        outputs = session.run(None, {"images": prepare(Image.open(file), facts)})
        for (name, values), output in zip(expected.items(), outputs, strict=True):
            assert relative_difference(output[0], values[i]) < 1e-5, (file, name)


def follow_steps(image: Image.Image, steps: list[dict[str, Any]]) -> np.ndarray:
    """Resize and crop as the steps in the metadata say, for timm's other crop modes."""
    _, _, resize, crop, _ = steps
    size = crop["size"]
    if "width" in resize:
        scaled = (resize["width"], resize["height"])
    else:
        ratio = max(side / resize["longer_side"] for side in image.size)
        scaled = (round(image.width / ratio), round(image.height / ratio))
    image = image.resize(scaled, Image.Resampling[resize["filter"].upper()])
    if "pad" in crop:
        missing = [max(0, size - side) for side in image.size]
        border = (missing[0] // 2, missing[1] // 2, (missing[0] + 1) // 2, (missing[1] + 1) // 2)
        image = ImageOps.expand(image, border, tuple(crop["pad"]))
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
@pytest.mark.parametrize("mode", ["squash", "border"])
def test_steps_of_other_crops(mode: str, crop_pct: float, trained: nn.Module, photographs: list[Image.Image]) -> None:
    preprocessing = replace(Preprocessing.for_model(trained, 45), crop_mode=mode, crop_pct=crop_pct)
    facts = _describe_preprocessing(preprocessing)
    assert str(math.floor(45 / crop_pct)) in facts["in_words"]
    for photograph in photographs:
        expected = preprocessing.geometry()(photograph).permute(1, 2, 0).numpy()
        assert np.array_equal(follow_steps(photograph, facts["steps"]), expected)
