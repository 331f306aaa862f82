"""Checkpoint files of every container, prefix and age: each is loaded or refused as a whole."""

import argparse
import io
import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from densefeat import WeightsError, load_weights
from densefeat.nets import read_state_dict
from support.helpers import BUNDLED, randomize_statistics

NAME = "densefeat_densenet_bc100_k12"
STRUCTURE = dict(block_config=(2, 3, 2))  # key names and shapes of the published network, in few layers


@pytest.fixture(scope="module")
def source() -> torch.nn.Module:
    torch.manual_seed(3)
    return randomize_statistics(timm.create_model(NAME, num_classes=200, **STRUCTURE)).eval()


def fresh(**kwargs) -> torch.nn.Module:
    torch.manual_seed(4)
    return timm.create_model(NAME, **(STRUCTURE | kwargs)).eval()


def old_torchvision(state: dict) -> dict:
    """The layout of torchvision's first DenseNet files: norm.1 for norm1, and no num_batches_tracked."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
        for key, value in state.items()
        if "num_batches_tracked" not in key
    }


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def in_sequential(place: int, state: dict) -> dict:
    """The layout of a classifier that is layer ``place`` of a Sequential."""
    return {key.replace("classifier.", f"classifier.{place}."): value for key, value in state.items()}


def noise(state: dict) -> dict:
    return {key: torch.zeros_like(value) for key, value in state.items()}


LAYOUTS = {
    "plain": lambda s: s,
    "old torchvision": old_torchvision,
    "without num_batches_tracked": lambda s: {k: v for k, v in s.items() if "num_batches_tracked" not in k},
    "DDP": lambda s: prefixed("module.", s),
    "compiled DDP": lambda s: prefixed("_orig_mod.module.", s),
    "timm training": lambda s: {"epoch": 3, "arch": "x", "state_dict": s, "optimizer": {"state": {}}},
    "timm training with EMA": lambda s: {"state_dict": noise(s), "state_dict_ema": prefixed("module.", s)},
    "averaged model of torch": lambda s: {"n_averaged": torch.tensor(7), **prefixed("module.", s)},
    "Lightning": lambda s: {"state_dict": prefixed("model.", s), "global_step": 5},
    "EMA settings beside the model": lambda s: {"ema": {"decay": 0.999}, "model": s},
    "EMA beside the model": lambda s: {**prefixed("model.", noise(s)), **prefixed("ema_model.module.", s)},
    "EMA and its updates": lambda s: {"model": noise(s), "ema": {"module": s, "updates": torch.tensor(5)}},
    "EMA in a state dict": lambda s: {"model": noise(s), "ema": {"state_dict": prefixed("module.", s), "decay": 0.99}},
    "EMA of timm, saved whole": lambda s: {"state_dict": noise(s), "model_ema": {"module": s}},
    "EMA two levels down": lambda s: {"model": noise(s), "ema": {"state": {"module": s, "n_averaged": torch.tensor(2)}}},
    "EMA of a callback": lambda s: {"state_dict": noise(s), "callbacks": {"EMA": {"state": {"shadow": s}}}},
    "EMA of several programs": lambda s: {"ema": {"module": noise(s)}, "model_ema": noise(s), "state_dict_ema": s},
    "EMA under another name": lambda s: {"model": noise(s), "ema_model": s},
    "EMA before lists of it": lambda s: {"model": noise(s), "ema": {"module": s, "collected_params": list(s.values())}},
    "SWA beside the model": lambda s: {"model": noise(s), "swa_model": {"n_averaged": torch.tensor(7), **prefixed("module.", s)}},
    "EMA of losses": lambda s: {"ema": {"loss": torch.tensor(0.3)}, "accuracy": torch.tensor(0.9), "model": s},
    "numbers beside an entry of another name": lambda s: {"net": s, "step": torch.tensor(7), "best": {"acc": torch.tensor(0.9)}},
    "averaged model in Lightning": lambda s: {
        "state_dict": {"net.n_averaged": torch.tensor(7), **prefixed("net.module.", s)}
    },
    "averaged model beside the model in Lightning": lambda s: {
        "state_dict": {
            **prefixed("model.", noise(s)), "ema_model.n_averaged": torch.tensor(7), **prefixed("ema_model.module.", s)
        }
    },
    "average beside the model in Lightning": lambda s: {
        "state_dict": {**prefixed("model.", noise(s)), **prefixed("_average_model.", s)}
    },
    "Lightning, another attribute": lambda s: {"state_dict": prefixed("network.", s), "loops": {}, "callbacks": {}},
    "fastai": lambda s: prefixed("0.model.", s),
    "transformers": lambda s: prefixed("timm_model.", s),
    "segmentation_models_pytorch": lambda s: prefixed("encoder.model.", s),
    "CheXNet": lambda s: {"state_dict": prefixed("module.densenet121.", in_sequential(0, old_torchvision(s)))},
    "classifier after dropout": lambda s: in_sequential(1, s),
    "MONAI": lambda s: {
        re.sub(r"(denselayer\d+)\.", r"\1.layers.", key).replace("classifier.", "class_layers.out."): value
        for key, value in s.items()
    },
    "parts compiled": lambda s: {key.replace("features.", "features._orig_mod."): value for key, value in s.items()},
    "an entry of another name": lambda s: {"net": s, "acc": 0.9, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
    "timm's args": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, output=Path("out"))},
    "numpy's numbers": lambda s: {
        "model": s, "best": np.float64(0.5), "step": np.int64(7), "curve": np.arange(3.0), "flag": np.bool_(True),
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_files_of_every_layout(layout: str, source: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](source.state_dict()), path)
    model = fresh()
    loaded = load_weights(model, path)
    assert loaded.dropped == ()
    for key, value in source.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_safetensors_by_content_not_by_name(ending: str, source: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{ending}"
    save_file(old_torchvision(source.state_dict()), path)
    model = fresh()
    load_weights(model, path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), source(x))


def test_torch_files_older_than_the_zip_format(source: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(old_torchvision(source.state_dict()), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = fresh()
    load_weights(model, tmp_path / "old.pth")
    assert torch.equal(model.classifier.weight, source.classifier.weight)


@pytest.mark.parametrize("classes", [0, 7])
def test_classifier_for_other_classes_is_left_out(classes: int, source: torch.nn.Module, tmp_path: Path) -> None:
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = fresh(num_classes=classes)
    own = {key: value.clone() for key, value in model.get_classifier().state_dict().items()}
    assert sorted(load_weights(model, tmp_path / "w.safetensors").dropped) == ["classifier.bias", "classifier.weight"]
    torch.testing.assert_close(dict(model.get_classifier().state_dict()), own, rtol=0, atol=0)
    assert torch.equal(model.features.conv0.weight, source.features.conv0.weight)


def with_mlp(state: dict) -> dict:
    """A head of two layers, of which the last has as many classes as the network."""
    kept = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    layers = {"classifier.0.weight": torch.zeros(8, 282), "classifier.0.bias": torch.zeros(8)}
    return kept | layers | {"classifier.2.weight": torch.zeros(200, 8), "classifier.2.bias": torch.zeros(200)}


def test_a_classifier_of_other_layers_is_left_out_with_a_warning(
    source: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(with_mlp(source.state_dict()), path)
    model = fresh(num_classes=200)
    before = model.classifier.weight.clone()
    with caplog.at_level(logging.WARNING):
        dropped = load_weights(model, path).dropped
    assert sorted(dropped) == ["classifier.0.bias", "classifier.0.weight", "classifier.2.bias", "classifier.2.weight"]
    assert "a classifier of other layers is left out (classifier.0.weight" in caplog.text or "classifier.0.bias" in caplog.text
    assert torch.equal(model.classifier.weight, before)
    assert torch.equal(model.features.conv0.weight, source.features.conv0.weight)
    with pytest.raises(WeightsError, match=r"classifier\.0\..*: a classifier of other layers than the network's"):
        load_weights(fresh(num_classes=200), path, whole=True)


def test_a_classifier_in_a_sequential_of_other_classes_is_left_out_or_refused(source: torch.nn.Module, tmp_path: Path) -> None:
    save_file(in_sequential(1, source.state_dict()), tmp_path / "w.safetensors")
    assert sorted(load_weights(fresh(num_classes=7), tmp_path / "w.safetensors").dropped) == [
        "classifier.bias",
        "classifier.weight",
    ]
    with pytest.raises(WeightsError, match="for another number of classes than the network's 7"):
        load_weights(fresh(num_classes=7), tmp_path / "w.safetensors", whole=True)


def test_a_classifier_is_never_half_loaded(source: torch.nn.Module, tmp_path: Path) -> None:
    """Its weight fits and its bias is of other classes: neither is taken."""
    save_file(source.state_dict() | {"classifier.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    model = fresh(num_classes=200)
    before = model.classifier.weight.clone()
    assert sorted(load_weights(model, tmp_path / "w.safetensors").dropped) == ["classifier.bias", "classifier.weight"]
    assert torch.equal(model.classifier.weight, before)


class Unknown:
    """A class of the program that trained the network."""


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/densefeat-was-here",)


def other_architecture(path: Path) -> None:
    torch.save(timm.create_model("densefeat_densenet40_k12", **STRUCTURE).state_dict(), path)


def written(content: Any) -> Any:
    """Make a function that saves what a function makes of a state dict."""
    return lambda path: torch.save(content(fresh().state_dict()), path)


def truncated_zip(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(fresh().state_dict(), buffer)
    path.write_bytes(buffer.getvalue()[:-2000])


def truncated_safetensors(path: Path) -> None:
    save_file(fresh().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])


def malicious_zip(path: Path) -> None:
    torch.save({"state_dict": Malicious()}, path)


def malicious_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": Malicious()}))


def compressed_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50_000_000))


def integers(path: Path) -> None:
    torch.save({key: value.to(torch.int8) for key, value in fresh().state_dict().items()}, path)


def sparse(path: Path) -> None:
    state = fresh().state_dict()
    state["classifier.weight"] = state["classifier.weight"].to_sparse()
    torch.save(state, path)


def one_tensor_reshaped(path: Path) -> None:
    state = fresh().state_dict()
    state["features.denseblock2.denselayer3.conv2.weight"] = torch.zeros(12, 48, 5, 5)
    del state["features.norm5.bias"]
    state["features.surprise"] = torch.zeros(1)
    torch.save(state, path)


UNFIT = [
    (
        other_architecture,
        r"do not fit densefeat_densenet_bc100_k12: \d+ keys missing \(first: features.denseblock1.denselayer1.norm2",
    ),
    (truncated_zip, "truncated or not a checkpoint"),
    (truncated_safetensors, "truncated or not a checkpoint"),
    (malicious_zip, r"refused, its pickle holds more than tensors \((posix|nt).system\)"),
    (malicious_pickle, r"refused, its pickle holds more than tensors|that can be read safely"),
    (compressed_bomb, r"refused, a compressed archive \([\d,]+ bytes that unpack to 50,000,000\)"),
    (
        one_tensor_reshaped,
        r"1 keys missing \(first: features.norm5.bias\); 1 unexpected \(first: features.surprise\); 1 of another shape "
        r"\(first: features.denseblock2.denselayer3.conv2.weight \(12, 48, 5, 5\) for \(12, 48, 3, 3\)\)",
    ),
    (lambda path: path.write_bytes(b""), "truncated or not a checkpoint"),
    (lambda path: path.write_bytes(b"<html>not found</html>"), "neither safetensors nor a torch checkpoint|truncated or not a"),
    (
        lambda path: path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF"),
        r": neither safetensors nor a torch checkpoint that can be read safely$",  # and nothing of torch's advice
    ),
    (lambda path: torch.save([1, 2], path), "holds a list, not a state dict"),
    (lambda path: torch.save({}, path), "keys missing"),
    (lambda path: torch.save({0: torch.zeros(1)}, path), "keys missing"),
    (integers, r"\d+ of another kind of number \(first: features.conv0.weight"),
    (sparse, r"1 of another kind of number \(first: classifier.weight\)"),
    (lambda path: None, "no such file"),
    (
        written(lambda s: prefixed("student.", s) | prefixed("teacher.", s)),
        r"weights .*: the network's tensors are there more than once, with the prefixes 'student\.' and 'teacher\.'",
    ),
    (
        written(lambda s: prefixed("network.", s) | {"loss.weight": torch.zeros(1)}),
        r"without the prefix 'network\.': 1 unexpected \(first: loss\.weight\)",
    ),
    (
        written(lambda s: prefixed("net.", {key: value for key, value in s.items() if "norm5.bias" not in key})),
        r"without the prefix 'net\.': 1 keys missing \(first: features\.norm5\.bias\)",
    ),
    (
        lambda path: torch.save(fresh(in_chans=1).state_dict(), path),
        r"1 of another shape \(first: features.conv0.weight .*; it reads images of 1 channels, as .* in_chans=1 does",
    ),
    (
        written(lambda s: {"model": s, "ema": {"decay": 0.99, "shadow_params": list(s.values())}}),
        r"'ema\.shadow_params' holds averaged weights as tensors without names",
    ),
    (written(lambda s: {"model": s, "model_ema": list(s.values())}), "'model_ema' holds averaged weights as tensors without"),
    (
        written(lambda s: {"model": s, "ema": {"shadow": dict(enumerate(s.values()))}}),
        r"'ema\.shadow' holds averaged weights as tensors without names",
    ),
    (
        written(lambda s: {"model": s, "ema": {"backbone": s, "head": s}}),
        r"which of 'ema\.backbone', 'ema\.head' is the network",
    ),
    (written(lambda s: {"net": s, "net_copy": s}), "which of 'net', 'net_copy' is the network"),
    (written(lambda s: {"state_dict": s, "trainer": Unknown()}), r"refused, its pickle holds more than tensors \(\S*Unknown\)"),
    (
        written(lambda s: {"state_dict": s, "args": argparse.Namespace(run=Malicious())}),
        r"more than tensors \((posix|nt).system\)",
    ),
]


@pytest.mark.parametrize(("make", "match"), UNFIT, ids=[str(i) for i in range(len(UNFIT))])
def test_files_that_do_not_fit_are_one_clear_error_and_change_nothing(make, match: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    make(path)
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=match) as caught:
        load_weights(model, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert not Path("/tmp/densefeat-was-here").exists()


@pytest.mark.parametrize("layout", ["plain", "old torchvision", "DDP", "without num_batches_tracked", "timm training with EMA"])
def test_timms_file_overlay_takes_the_same_layouts(layout: str, source: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](source.state_dict()), path)
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **STRUCTURE)
    assert torch.equal(model.classifier.weight, source.classifier.weight)


def test_timms_file_overlay_with_another_classifier(source: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "w.pth")
    name, structure = "densefeat_densenet121", dict(growth_rate=4, block_config=(2, 2))
    own = timm.create_model(name, num_classes=12, **structure)
    torch.save(own.state_dict(), tmp_path / "twelve.pth")
    model = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "twelve.pth")), **structure
    )
    assert model.num_classes == 1000
    assert torch.equal(model.features.norm5.weight, own.features.norm5.weight)


def test_timms_checkpoint_path_stays_strict(tmp_path: Path) -> None:
    torch.save(old_torchvision(fresh().state_dict()), tmp_path / "old.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        timm.create_model(NAME, checkpoint_path=tmp_path / "old.pth", **STRUCTURE)


def test_bundled_weights_are_small_and_finite(trained: torch.nn.Module) -> None:
    path = Path(timm.get_pretrained_cfg(BUNDLED).file)
    assert path.stat().st_size < 3_000_000
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    assert trained.num_classes == 200


def test_damage_in_a_torch_file_is_refused(tmp_path: Path) -> None:
    """torch.load itself gives other numbers for a flipped bit of a tensor."""
    path, random = tmp_path / "w.pt", np.random.default_rng(0)
    torch.save({"a": torch.randn(40, 3), "b": torch.ones(2)}, path)
    whole, good = path.read_bytes(), read_state_dict(path)
    refused = 0
    for bit in random.choice(8 * len(whole), 200, replace=False).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = read_state_dict(path)
        except WeightsError:
            refused += 1
            continue
        assert found.keys() == good.keys()
        assert all(torch.equal(found[name], good[name]) for name in good)
    assert refused > 60
    place = whole.index(good["a"].numpy().tobytes())
    path.write_bytes(whole[:place] + b"abc" + whole[place + 3 :])
    with pytest.raises(WeightsError, match=r"w.pt: damaged \(Bad CRC-32 for file 'w/data/0'\): fetch or copy it again"):
        read_state_dict(path)


def test_a_torch_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_state_dict(tmp_path / "w.pt")["a"].tolist() == [1, 1, 1]
