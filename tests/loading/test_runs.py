"""Runs of networks with a head of ours: written by training, read by load_run and the extractor."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import densefeat
from densefeat import UsageError, WeightsError
from densefeat.base.checksums import CHECKSUM
from densefeat.heads.modules import HeadedNet
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.transforms import Preprocessing
from densefeat.loading import CONFIG, RECIPE, RESULTS, WEIGHTS, load_network, read_recorded_recipe, read_results
from densefeat.loading.run_files import OWN
from densefeat.training.run_folder import RunFolder
from support.helpers import BUNDLED, randomize_statistics, relative_difference
from support.tiny_net import TINY

PREPROCESSING = Preprocessing(32, 0.9, "center", "bicubic", (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))


@pytest.mark.parametrize("model", [BUNDLED, "resnet18", "convnext_atto"])
@pytest.mark.parametrize("kind", ["mlp", "cross-layer"])
def test_a_run_is_read_as_it_was_written(tmp_path: Path, model: str, kind: str) -> None:
    torch.manual_seed(0)
    network = randomize_statistics(HeadedNet(timm.create_model(model, num_classes=0), kind, 8, 3)).eval()
    RunFolder(tmp_path).export(network, PREPROCESSING, ["b", "a", "c"], "multi")
    again = densefeat.load_run(tmp_path)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
        assert network(x).shape == (2, 3)
    assert Preprocessing.for_model(again) == PREPROCESSING
    assert again.pretrained_cfg["label_names"] == ["b", "a", "c"]
    extractor = densefeat.FeatureExtractor(str(tmp_path), device="cpu")
    last = extractor(x)[extractor.taps[-1].name]
    with torch.no_grad():
        wanted = network.backbone.forward_intermediates(x, intermediates_only=True)[-1].mean((2, 3))
    assert relative_difference(last, wanted) < 1e-5


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_run_says_how_many_channels_it_reads(tmp_path: Path, kind: str) -> None:
    bands = Preprocessing(32, 0.9, "center", "bicubic", (0.5,) * 4, (0.2,) * 4, PixelRule("0:4095", in_chans=4))
    network = timm.create_model(TINY, in_chans=4, num_classes=3 if kind == "linear" else 0)
    RunFolder(tmp_path).export(
        network if kind == "linear" else HeadedNet(network, kind, 8, 3), bands, ["a", "b", "c"], "single"
    )
    again = densefeat.load_run(tmp_path)
    assert again.in_chans == 4
    assert Preprocessing.for_model(again) == bands


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    network = HeadedNet(timm.create_model(BUNDLED, num_classes=0), "mlp", 8, 3)
    RunFolder(tmp_path).export(network, PREPROCESSING, ["b", "a", "c"], "single")
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if not name.startswith("head.")}, weights)
    with pytest.raises(
        WeightsError, match=r"do not fit densefeat_densenet_bc100_k12: 4 keys missing \(first: head.hidden.weight"
    ):
        densefeat.load_run(tmp_path)
    densefeat.FeatureExtractor(str(tmp_path), device="cpu")  # reads no head
    save_file({name: value for name, value in tensors.items() if "denseblock2" not in name}, weights)
    with pytest.raises(WeightsError, match="keys missing"):
        densefeat.FeatureExtractor(str(tmp_path), device="cpu")
    weights.write_bytes(b"nothing at all")
    with pytest.raises(WeightsError, match="truncated or not a checkpoint"):
        densefeat.load_run(tmp_path)
    with pytest.raises(UsageError, match="has its own"):
        densefeat.FeatureExtractor(str(tmp_path), weights=weights, device="cpu")


def test_a_network_that_returns_no_maps() -> None:
    with pytest.raises(UsageError, match="Linear does not return its blocks' maps: take the linear head"):
        HeadedNet(nn.Linear(2, 2), "mlp", 8, 3)


@pytest.fixture(scope="module")
def written_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunFolder(tmp_path_factory.mktemp("written") / "run")
    run.path.mkdir()
    torch.manual_seed(0)
    run.export(timm.create_model(TINY, num_classes=3), PREPROCESSING, ["b", "a", "c"], "single")
    run.write_results({"val": {"top1": 54.25, "loss": float("nan")}, "step": 8})
    return run.path


def test_a_run_without_damage(written_run: Path) -> None:
    assert read_results(written_run)["val"] == {"top1": 54.25, "loss": "nan"}
    network = timm.create_model(f"local-dir:{written_run}", pretrained=True)  # timm takes no offence at the checksum
    assert all(torch.equal(value, load_file(written_run / WEIGHTS)[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "old", "new", "match"),
    [
        (WEIGHTS, None, None, "model.safetensors: damaged, or changed by another program"),
        (CONFIG, b"0.9", b"0.8", "config.json': damaged, .*if you changed it on purpose, remove its entry 'densefeat_sha256'"),
        (CONFIG, b'"b"', b'"d"', "config.json': damaged"),
        (CONFIG, b'"task": "single"', b'"task": "multi"', "config.json': damaged"),
        (RESULTS, b"54.25", b"94.25", "results.json': damaged"),
        (RESULTS, b"{", b"[", "results.json': damaged, not JSON"),
    ],
)
def test_damage_is_named(written_run: Path, tmp_path: Path, name: str, old: bytes | None, new: bytes, match: str) -> None:
    run = shutil.copytree(written_run, tmp_path / "run")
    data = (run / name).read_bytes()
    assert old is None or old in data
    (run / name).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:] if old is None else data.replace(old, new))
    with pytest.raises(WeightsError, match=match) as caught:
        read_results(run) if name == RESULTS else load_network(str(run))
    assert "\n" not in str(caught.value)


def test_a_configuration_that_was_edited_on_purpose(written_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(written_run, tmp_path / "run")
    config = json.loads((run / CONFIG).read_text())
    del config[CHECKSUM]
    (run / CONFIG).write_text(json.dumps(config | {"label_names": ["x", "y", "z"]}))
    assert load_network(str(run), head=True).classes == ["x", "y", "z"]


TOO_LARGE = "its network is larger than its weights, at |no network can be made of it: .*can't allocate memory"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_args": {"block_config": [100_000] * 3}}, r"model_args has block_config \[100000, 100000, 100000\]"),
        ({"model_args": {"block_config": [40_000, 40_000]}}, r"model_args has block_config \[40000, 40000\]"),
        ({"model_args": {"growth_rate": 1e9}}, "model_args has growth_rate 1000000000.0"),
        ({"model_args": {"growth_rate": float("inf")}}, "model_args has growth_rate inf"),
        ({"model_args": {"block_config": [60_000]}}, TOO_LARGE),
        ({"model_args": {"growth_rate": 30_000, "block_config": [9, 9]}}, TOO_LARGE),
        ({OWN: {"head": "mlp", "head_width": 2**16, "num_classes": 2**20}}, TOO_LARGE),
        ({"deep": json.loads("[" * 110 + "]" * 110)}, "not JSON: nested too deeply"),
        ({"pretrained_cfg": {"input_size": [3, 40_000, 40_000]}}, r"input_size \[3, 40000, 40000\], crop_pct 1.0"),
        ({"pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 1e-5}}, r"input_size \[3, 32, 32\], crop_pct 1e-05"),
        ({"pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": -1}}, r"input_size \[3, 32, 32\], crop_pct -1.0"),
    ],
)
def test_configurations_of_huge_networks(written_run: Path, tmp_path: Path, change: dict, match: str) -> None:
    run = shutil.copytree(written_run, tmp_path / "run")
    config = json.loads((run / CONFIG).read_text())
    del config[CHECKSUM]
    (run / CONFIG).write_text(json.dumps(config | {"architecture": "densefeat_densenet_bc100_k12"} | change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=match):
        load_network(str(run), head=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**21  # KiB


@pytest.mark.parametrize("recipe", ["a: &a [1]\nb: [*a, *a]", "[" * 10_000, "x: 1" + " " * 2**20, "\x00", "- 1"])
def test_a_recorded_recipe_that_is_none(recipe: str, tmp_path: Path) -> None:
    (tmp_path / RECIPE).write_text("lr: 0.5")
    assert read_recorded_recipe(tmp_path) == {"lr": 0.5}
    (tmp_path / RECIPE).write_text(recipe)
    assert read_recorded_recipe(tmp_path) == {}
