"""The published numbers of every network."""

import pytest
import timm
import torch

from densefeat.nets.zoo import VARIANTS

IMAGENET, CIFAR = 1000, 10

# name: (classes, parameters, channels after each block)
PUBLISHED = {
    "densefeat_densenet40_k12": (CIFAR, 1_019_722, (160, 304, 448)),
    "densefeat_densenet100_k12": (CIFAR, 6_979_642, (400, 784, 1168)),
    "densefeat_densenet100_k24": (CIFAR, 27_249_082, (784, 1552, 2320)),
    "densefeat_densenet_bc100_k12": (CIFAR, 769_162, (216, 300, 342)),
    "densefeat_densenet_bc250_k24": (CIFAR, 15_324_406, (1032, 1500, 1734)),
    "densefeat_densenet_bc190_k40": (CIFAR, 25_624_430, (1320, 1900, 2190)),
    "densefeat_densenet121": (IMAGENET, 7_978_856, (256, 512, 1024, 1024)),
    "densefeat_densenet169": (IMAGENET, 14_149_480, (256, 512, 1280, 1664)),
    "densefeat_densenet201": (IMAGENET, 20_013_928, (256, 512, 1792, 1920)),
    "densefeat_densenet264": (IMAGENET, 33_337_704, (256, 512, 2304, 2688)),
    "densefeat_densenet161": (IMAGENET, 28_681_000, (384, 768, 2112, 2208)),
    "densefeat_delugenet146": (CIFAR, 6_686_250, (64, 128, 256)),
    "densefeat_delugenet218": (CIFAR, 9_981_738, (64, 128, 256)),
    "densefeat_wide_delugenet146": (CIFAR, 20_150_658, (112, 224, 448)),
    "densefeat_delugenet92": (IMAGENET, 43_404_072, (128, 256, 512, 1024)),
    "densefeat_delugenet104": (IMAGENET, 51_353_896, (128, 256, 512, 1024)),
    "densefeat_delugenet122": (IMAGENET, 63_620_392, (128, 256, 512, 1024)),
}


def test_the_table_is_complete() -> None:
    assert set(PUBLISHED) == set(VARIANTS) == set(timm.list_models("densefeat_*"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_block_shapes(name: str) -> None:
    classes, parameters, channels = PUBLISHED[name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=classes)
        cfg = model.pretrained_cfg
        size = cfg["input_size"]
        maps = model.forward_intermediates(torch.empty(2, *size), intermediates_only=True)[1:]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    sides = (56, 28, 14, 7) if classes == IMAGENET else (32, 16, 8)
    assert [tuple(block.shape) for block in maps] == [(2, c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert maps[-1].shape[2:] == cfg["pool_size"]
    assert {cfg["first_conv"] + ".weight", cfg["classifier"] + ".weight"} <= set(model.state_dict())
    assert [info["num_chs"] for info in model.feature_info[1:]] == list(channels)
    assert [info["reduction"] for info in model.feature_info[1:]] == [size[-1] // side for side in sides]


HUB = {
    "densefeat_densenet121.ra_in1k": "timm/densenet121.ra_in1k",
    "densefeat_densenet121.tv_in1k": "timm/densenet121.tv_in1k",
    "densefeat_densenet161.tv_in1k": "timm/densenet161.tv_in1k",
    "densefeat_densenet169.tv_in1k": "timm/densenet169.tv_in1k",
    "densefeat_densenet201.tv_in1k": "timm/densenet201.tv_in1k",
}


@pytest.mark.parametrize("name", HUB)
def test_published_weights_and_their_preprocessing_are_timms(name: str) -> None:
    ours, theirs = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(name.removeprefix("densefeat_"))
    assert ours.hf_hub_id == theirs.hf_hub_id == HUB[name]
    for field in ("input_size", "interpolation", "crop_pct", "mean", "std", "num_classes", "test_input_size", "test_crop_pct"):
        assert getattr(ours, field) == getattr(theirs, field), field


def test_defaults() -> None:
    assert timm.get_pretrained_cfg("densefeat_densenet121").tag == "ra_in1k"
    assert timm.get_pretrained_cfg("densefeat_densenet_bc100_k12").tag == "tin200"
    assert not timm.is_model_pretrained("densefeat_delugenet92")


def test_structure_can_be_overridden() -> None:
    model = timm.create_model("densefeat_densenet121", block_config=(2, 2, 2), growth_rate=8, features_only=True)
    assert model.feature_info.channels() == [16, 32, 32, 32]
