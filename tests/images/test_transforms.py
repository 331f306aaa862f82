"""The split preprocessing equals timm's whole one."""

import pickle

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from densefeat import UsageError
from densefeat.images.transforms import Preprocessing, tensor_to_image


@pytest.mark.parametrize(
    ("name", "size"), [("densefeat_densenet121", None), ("densefeat_densenet_bc100_k12", None), ("resnet18", 96)]
)
def test_equals_timms_evaluation_transform_bit_for_bit(name: str, size: int | None, photographs: list[Image.Image]) -> None:
    model = timm.create_model(name)
    config = resolve_model_data_config(model)
    if size:
        config["input_size"] = (3, size, size)
    theirs = torch.stack([create_transform(**config)(photograph) for photograph in photographs])
    preprocessing = Preprocessing.of(model, size)
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
def test_inputs_that_cannot_be_prepared(name: str, kwargs: dict, size: int | None, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Preprocessing.of(timm.create_model(name, **kwargs), size)


def test_tensors_to_images(photographs: list[Image.Image]) -> None:
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    assert tensor_to_image(pixels).size == (5, 4)
    with pytest.raises(UsageError, match=r"shape \(4, 5\) and torch.uint8: pass uint8 \(3, H, W\)"):
        tensor_to_image(pixels[0])
    with pytest.raises(UsageError, match=r"torch.int64"):
        tensor_to_image(pixels.long())
