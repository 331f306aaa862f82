"""Weights of other programs as safetensors that say what they expect: read again without being told."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open

from densefeat.errors import OutputError, UsageError, WeightsError
from densefeat.export import export_model
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.transforms import Preprocessing
from densefeat.loading.conversion import convert_weights
from densefeat.loading.load import load_network
from support.cifar_nets import CifarNet
from support.helpers import randomize_statistics
from support.tiny_net import TINY, write_tiny_weights


def write_tiny(path: Path, prefix: str = "", extra: dict[str, torch.Tensor] | None = None, **shape: int) -> Path:
    state = randomize_statistics(timm.create_model(TINY, **shape)).state_dict()
    torch.save({f"{prefix}{name}": value for name, value in state.items()} | (extra or {}), path)
    return path


def read_metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["densefeat"])


def test_a_network_for_cifar(tmp_path: Path) -> None:
    """Found by its tensors, with the normalisation of its program; --weights then needs no more."""
    torch.manual_seed(0)
    theirs = randomize_statistics(CifarNet("andreasveit")).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "model_best.pth.tar")
    result = convert_weights(tmp_path / "model_best.pth.tar", tmp_path / "c10.safetensors")
    assert (result.metadata["model"], result.num_classes) == ("densefeat_densenet_bc100_k12", 10)
    assert result.stated_by == "andreasveit"
    assert result.metadata == read_metadata(result.path)
    assert result.metadata["weights"]["source"] == "model_best.pth.tar"
    network = load_network("densefeat_densenet_bc100_k12", result.path, head=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.model(x), theirs(x), rtol=1e-5, atol=1e-5)
    preprocessing = Preprocessing.for_model(network.model)
    assert preprocessing.mean == pytest.approx((125.3 / 255, 123.0 / 255, 113.9 / 255))
    assert preprocessing.std == pytest.approx((63.0 / 255, 62.1 / 255, 66.7 / 255))
    assert (preprocessing.size, preprocessing.crop_pct) == (32, 1.0)


def test_one_channel_and_labels(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "w.pt", in_chans=1, num_classes=3)
    result = convert_weights(
        file, tmp_path / "w.safetensors", model=TINY, mean=(0.5,), std=(1 / 2048,), classes=["ant", "bee", "cat"]
    )
    assert result.stated_by == "you"
    network = load_network(TINY, result.path, head=True)
    assert (network.classes, network.task, network.model.in_chans) == (["ant", "bee", "cat"], "single", 1)
    preprocessing = Preprocessing.for_model(network.model)
    assert (preprocessing.mean, preprocessing.std, preprocessing.pixels.in_chans) == ((0.5,), (1 / 2048,), 1)
    # -1024 to 1024 for black to white
    pixels = torch.tensor([0.0, 0.25, 1.0]).reshape(1, 1, 1, 3)
    assert preprocessing.normalize(pixels).flatten().tolist() == [-1024, -512, 1024]


@pytest.mark.parametrize(
    ("made_by", "state", "mean", "std", "task"),
    [
        ("torchxrayvision", {"in_chans": 1, "num_classes": 18}, [0.5], [1 / 2048], "multi"),
        ("radimagenet", {"num_classes": 0}, [0.5] * 3, [0.5] * 3, "single"),
        ("bamos", {}, [0.49139968, 0.48215827, 0.44653124], [0.24703233, 0.24348505, 0.26158768], "single"),
    ],
)
def test_made_by(made_by: str, state: dict[str, int], mean: list[float], std: list[float], task: str, tmp_path: Path) -> None:
    result = convert_weights(write_tiny(tmp_path / "w.pt", **state), tmp_path / "w.safetensors", model=TINY, made_by=made_by)
    preprocessing = result.metadata["preprocessing"]
    assert (preprocessing["mean"], preprocessing["std"], result.stated_by) == (mean, std, made_by)
    network = load_network(TINY, result.path)
    assert network.task == task
    assert (network.classes or [""])[0] == ("Atelectasis" if task == "multi" else "")


def test_without_a_classifier(tmp_path: Path) -> None:
    """A file without one, or with one of several layers, becomes one without."""
    layers = {"classifier.0.weight": torch.ones(8, 39), "classifier.3.weight": torch.ones(2, 8)}
    for name, extra in (("a", {}), ("b", layers)):
        file = write_tiny(tmp_path / f"{name}.pt", extra=extra, num_classes=0)
        result = convert_weights(file, tmp_path / f"{name}.safetensors", model=TINY)
        with safe_open(result.path, "pt") as opened:
            assert not [key for key in opened.keys() if key.startswith("classifier")]  # noqa: SIM118
        assert result.num_classes == 0
        load_network(TINY, result.path)
        with pytest.raises(WeightsError, match="keys missing .first: classifier.weight"):
            load_network(TINY, result.path, head=True)


def test_nothing_known_is_the_networks_own(tmp_path: Path) -> None:
    result = convert_weights(write_tiny_weights(tmp_path), tmp_path / "w.safetensors", model=TINY)
    assert (result.stated_by, result.metadata["preprocessing"]["mean"]) == ("", [0.49, 0.48, 0.45])


def test_converted_again_it_says_the_same(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "w.pt", in_chans=1, num_classes=18)
    first = convert_weights(file, tmp_path / "a.safetensors", model=TINY, made_by="torchxrayvision")
    second = convert_weights(first.path, tmp_path / "b.safetensors", model=TINY)
    assert second.stated_by == "its metadata"
    assert {**second.metadata, "weights": 0} == {**first.metadata, "weights": 0}


def test_exported_weights_are_followed_as_well(tmp_path: Path) -> None:
    """Their size, mean and pixel rule were those of the network that was exported."""
    model: Any = timm.create_model(TINY, num_classes=3)
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    model.pixel_rule = PixelRule(range="0:4095")
    export_model(model, "safetensors", tmp_path / "w.safetensors", image_size=64)
    network = load_network(TINY, tmp_path / "w.safetensors", head=True)
    preprocessing = Preprocessing.for_model(network.model)
    assert (network.num_classes, preprocessing.size, preprocessing.mean) == (3, 64, (0.1, 0.2, 0.3))
    assert (preprocessing.interpolation, preprocessing.pixels.range) == ("bilinear", "0:4095")


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ({"in_chans": 2}, {}, r"for images of 2 channels, whose mean and deviation they do not state.*--mean.*--made-by"),
        ({"in_chans": 2}, {"mean": (1.0,), "std": (1.0,)}, "mean of 1 channels: the weights .* are for images of 2"),
        ({}, {"made_by": "torchxrayvision"}, "mean of 1 channels: the weights .* are for images of 3"),
        ({}, {"made_by": "nobody"}, "made_by 'nobody': choose one of torchxrayvision, "),
        ({}, {"mean": (0.5,) * 3}, "mean and std belong together"),
        ({}, {"mean": (0.5,) * 3, "std": (0.5,)}, "mean and std must have one number each"),
        ({}, {"mean": (0.5,) * 3, "std": (0.0,) * 3}, "std .* is not a finite number above 0"),
        ({}, {"classes": ["a"]}, "1 classes: the weights .* have 10 outputs"),
        ({}, {"model": "no_such_net"}, "unknown model 'no_such_net'"),
        ({}, {"out": "w.pth"}, "give a name that ends in .safetensors"),
    ],
)
def test_wrong_use(shape: dict[str, int], options: dict[str, Any], match: str, tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "w.pt", **shape)
    arguments: dict[str, Any] = {"model": TINY, "out": "w.safetensors"} | options
    with pytest.raises(UsageError, match=match):
        convert_weights(file, tmp_path / arguments.pop("out"), **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_nothing_is_replaced(tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_text("mine")
    with pytest.raises((UsageError, OutputError), match="w.safetensors"):
        convert_weights(file, tmp_path / "w.safetensors", model=TINY)
    assert (tmp_path / "w.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (None, r"tensors .first: x.features.conv0.weight, .*those of no network .*--model NAME"),
        ("densefeat_densenet40_k12", "do not fit densefeat_densenet40_k12 .*keys missing"),
    ],
)
def test_weights_of_another_network(model: str | None, match: str, tmp_path: Path) -> None:
    file = write_tiny(tmp_path / "w.pt", "x.")
    with pytest.raises(WeightsError, match=match):
        convert_weights(file, tmp_path / "out.safetensors", model=model)
