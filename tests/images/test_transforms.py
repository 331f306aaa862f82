"""The split preprocessing equals timm's whole one."""

import math
import pickle
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torchvision.transforms.functional import pil_to_tensor

from densefeat import UsageError
from densefeat.images.transforms import Preprocessing


@pytest.mark.parametrize(
    ("name", "size"), [("densefeat_densenet121", None), ("densefeat_densenet_bc100_k12", None), ("resnet18", 96)]
)
def test_equals_timms_evaluation_transform_bit_for_bit(name: str, size: int | None, photographs: list[Image.Image]) -> None:
    model = timm.create_model(name)
    config = resolve_model_data_config(model)
    if size:
        config["input_size"] = (3, size, size)
    theirs = torch.stack([create_transform(**config)(photograph) for photograph in photographs])
    preprocessing = Preprocessing.for_model(model, size)
    geometry = pickle.loads(pickle.dumps(preprocessing.geometry()))
    ours = preprocessing.normalize(torch.stack([geometry(photograph) for photograph in photographs]))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "match"),
    [
        ("densefeat_densenet_bc100_k12", {}, 16, "image size 16: the networks need at least 32 pixels"),
        ("densefeat_densenet_bc100_k12", {"in_chans": 1}, None, "the model reads 1 channels"),
    ],
)
def test_unsupported_inputs(name: str, kwargs: dict, size: int | None, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Preprocessing.for_model(timm.create_model(name, **kwargs), size)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("size", value) for value in (0, -1, 2**13 + 1, 32.0, "32", None)],
        *[("crop_pct", value) for value in (0, -1.0, 0.001, 1e9, math.nan, "1", None, [1])],
        *[("crop_mode", value) for value in ("", "all", None, ["center"])],
        *[("interpolation", value) for value in ("random", 3, ["bicubic"])],
        *[
            (name, value)
            for name in ("mean", "std")
            for value in ((0.5,) * 2, 0.5, (0.5, 0.5, "a"), (0.5, 0.5, math.inf), ([],) * 3)
        ],
    ],
)
def test_values_without_a_meaning(name: str, value: object) -> None:
    """Files of strangers state them: a size decides how much memory is needed for each image."""
    values = {"size": 32, "crop_pct": 1, "crop_mode": "center", "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}
    Preprocessing(**values)
    with pytest.raises(UsageError, match=rf"preprocessing: {name} .* has no meaning"):
        Preprocessing(**values | {name: value})


@pytest.mark.parametrize("size", [32, 75, 224, 600])  # down and up
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_tensors_come_out_as_images_do(interpolation: str, crop_mode: str, size: int, photographs: list[Image.Image]) -> None:
    own = Preprocessing.for_model(timm.create_model("densefeat_densenet_bc100_k12"), size)
    geometry = replace(own, crop_mode=crop_mode, interpolation=interpolation, crop_pct=0.9).geometry()
    for photograph in photographs[:4]:
        pixels = pil_to_tensor(photograph)
        expected = geometry(photograph)
        for layout in (pixels, pixels.contiguous()):
            prepared = geometry(layout)
            assert prepared.shape == expected.shape == (3, size, size)
            assert prepared.dtype == torch.uint8
            assert prepared.is_contiguous()
            assert expected.is_contiguous()
            difference = (prepared.int() - expected.int()).abs()
            tall = photograph.height > photograph.width  # Pillow 13 may resize the columns of these first: a rounding apart
            assert difference.float().mean() < (0.25 if tall else 0.02)
            assert difference.max() <= (8 if tall else 2)


def test_borders_have_the_mean_colour_of_the_weights(photographs: list[Image.Image]) -> None:
    model = timm.create_model("densefeat_densenet_bc100_k12")
    mean = (0.2, 0.5, 0.8)
    own = replace(Preprocessing.for_model(model, 64), crop_mode="border", mean=mean)
    config = resolve_model_data_config(model) | {"input_size": (3, 64, 64), "crop_mode": "border", "mean": mean}
    assert torch.equal(own.normalize(own.geometry()(photographs[4])[None])[0], create_transform(**config)(photographs[4]))


def test_the_whole_image_is_seen_stretched() -> None:
    preprocessing = Preprocessing.for_model(timm.create_model("densefeat_densenet121")).see_whole()
    image = Image.new("RGB", (900, 300), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 90, 300))  # the left tenth
    for pixels in (image, pil_to_tensor(image)):
        seen = preprocessing.geometry()(pixels)
        assert seen.shape == (3, 224, 224)
        assert 21 < float(seen[0, 112].float().sum()) / 255 < 24
