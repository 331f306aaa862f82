"""Runs of networks with a head of ours: written by training, read by load_run and the extractor."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import densefeat
from densefeat import UsageError, WeightsError
from densefeat.heads.modules import HeadedNet
from densefeat.images.transforms import Preprocessing
from densefeat.training.run_folder import RunFolder
from support.helpers import BUNDLED, randomize_statistics, relative_difference

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
