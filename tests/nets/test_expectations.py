"""What files say of their weights: read strictly, and written into the network's configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from densefeat import WeightsError, load_weights
from densefeat.nets import count_channels, read_checkpoint
from densefeat.nets.expectations import find_expectations
from support.tiny_net import TINY

GREY = {"mean": [0.5], "std": [0.25]}


def write(path: Path, metadata: Any, in_chans: int = 3, num_classes: int = 4) -> Path:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(timm.create_model(TINY, in_chans=in_chans, num_classes=num_classes).state_dict(), path, {"densefeat": text})
    return path


def load(path: Path, in_chans: int = 3, num_classes: int = 4) -> dict[str, Any]:
    model = timm.create_model(TINY, in_chans=in_chans, num_classes=num_classes)
    load_weights(model, path)
    return model.pretrained_cfg


def test_what_metadata_state_is_the_networks(tmp_path: Path) -> None:
    preprocessing = GREY | {
        "size": 48,
        "crop_pct": 0.9,
        "crop_mode": "squash",
        "interpolation": "bilinear",
        "steps": [{"a": 1}],
    }
    metadata = {"preprocessing": preprocessing, "label_names": ["a", "b", "c", "d"], "other": None}
    config = load(write(tmp_path / "w.safetensors", metadata, 1), in_chans=1)
    assert {name: config[name] for name in ("mean", "std", "crop_pct", "crop_mode", "interpolation", "input_size")} == {
        "mean": (0.5,), "std": (0.25,), "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear",
        "input_size": (1, 48, 48),
    }  # fmt: skip
    assert config["label_names"] == ["a", "b", "c", "d"]
    assert timm.create_model(TINY).pretrained_cfg["mean"] == (0.49, 0.48, 0.45)  # no other network changes


def test_what_metadata_do_not_state_stays(tmp_path: Path) -> None:
    wanted = timm.create_model(TINY).pretrained_cfg
    assert load(write(tmp_path / "w.safetensors", {})) == wanted
    names = {"label_names": ["a"]}  # of another classifier
    assert load(write(tmp_path / "w.safetensors", names)) == wanted


def test_no_labels_without_their_classifier(tmp_path: Path) -> None:
    write(tmp_path / "w.safetensors", {"label_names": ["a", "b", "c", "d"]})
    assert "label_names" not in load(tmp_path / "w.safetensors", num_classes=5)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ("{", "cannot be read: Expecting"),
        ("[" * 200 + "]" * 200, "cannot be read: nested too deeply"),
        ([1], "cannot be read"),
        ({"preprocessing": [1]}, "cannot be read"),
        ('{"preprocessing": {"mean": [NaN], "std": [1]}}', r"have no meaning: mean \(nan,\) is not a finite number"),
        ('{"preprocessing": {"mean": [1], "std": [Infinity]}}', r"std \(inf,\) is not a finite number above 0"),
        ({"preprocessing": {"mean": [0.5], "std": [0]}}, r"std \(0,\) is not a finite number above 0"),
        ({"preprocessing": {"mean": ["0.5"], "std": [1]}}, r"mean \('0.5',\) is not a finite number"),
        ({"preprocessing": {"mean": [0.5]}}, "mean and std must have one number each"),
        ({"preprocessing": {"mean": [0.5, 0.5], "std": [1]}}, "mean and std must have one number each"),
        (
            {"preprocessing": {"mean": [0] * 2000, "std": [1] * 2000}},
            "mean .* is not a finite number for each channel, at most 1,024",
        ),
        ({"preprocessing": {"size": 0}}, "size 0 is not a whole number of pixels"),
        ({"preprocessing": {"size": 1e9}}, "size 1000000000.0 is not a whole number"),
        ({"preprocessing": {"size": True}}, "size True is not a whole number"),
        ({"preprocessing": {"crop_mode": "x" * 30}}, "crop_mode 'x+' is not a word of at most 20 letters"),
        ({"label_names": [1]}, r"label_names \(1,\) is not names"),
        ({"label_names": "abcd"}, "label_names 'abcd'"),
        ({"task": "regression"}, "task 'regression' is not single or multi"),
        ({"preprocessing": GREY}, r"for images of 1 channels, and the network reads 3: make it with in_chans=1"),
    ],
)
def test_metadata_without_meaning_are_refused_and_nothing_changes(metadata: Any, match: str, tmp_path: Path) -> None:
    model = timm.create_model(TINY, num_classes=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = dict(model.pretrained_cfg)
    with pytest.raises(WeightsError, match=rf"w.safetensors: .*{match}"):
        load_weights(model, write(tmp_path / "w.safetensors", metadata))
    assert model.pretrained_cfg == config
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "channels", "maker"),
    [
        (["op_threshs"], 1, "torchxrayvision"),
        (["model.op_threshs"], 1, "torchxrayvision"),
        (["op_threshs"], 3, ""),  # adapted to colour: nobody knows how
        (["module.block1.layer.0.bn1.weight", "module.trans1.conv1.weight"], 3, "andreasveit"),
        (["dense1.0.bn1.weight", "trans1.conv1.weight"], 3, "bamos"),
        (["dense1.0.bn1.weight", "trans1.conv.weight"], 3, ""),
        (["features.conv0.weight"], 3, ""),
    ],
)
def test_makers_are_known_by_their_keys(keys: list[str], channels: int, maker: str, tmp_path: Path) -> None:
    save_file({key: torch.ones(1) for key in keys}, tmp_path / "w.safetensors")
    expectations, source = find_expectations(read_checkpoint(tmp_path / "w.safetensors"), channels)
    assert source == maker
    assert len(expectations.mean or ()) == (channels if maker else 0)


def test_outputs_without_a_threshold_are_untrained(tmp_path: Path) -> None:
    thresholds = torch.full((18,), 0.1)
    thresholds[2] = float("nan")
    save_file({"op_threshs": thresholds}, tmp_path / "w.safetensors")
    names = find_expectations(read_checkpoint(tmp_path / "w.safetensors"), 1)[0].label_names
    assert names is not None
    assert names[1:4] == ("Consolidation", "Infiltration (untrained)", "Pneumothorax")


@pytest.mark.parametrize(("name", "channels"), [(TINY, 5), ("resnet18", 2)])
def test_channels(name: str, channels: int) -> None:
    assert count_channels(timm.create_model(name, in_chans=channels)) == channels
    assert count_channels(torch.nn.Linear(1, 1)) is None
