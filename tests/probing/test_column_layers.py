"""Layers of columns, worked out from the names of networks: compared with what the networks' modules return."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from densefeat.loading import CONFIG, write_config
from densefeat.nets import DenseNet
from densefeat.probing.column_layers import Layer, find_layers
from support.tiny_net import TINY

BC100 = "densefeat_densenet_bc100_k12.tin200"
TOLD = "no dense layers are known, so that each column counts as one layer"


def widths_of(layers: list[Layer], column: str) -> list[int]:
    return [layer.width for layer in layers if layer.column == column]


@pytest.mark.parametrize("name", [BC100, "densefeat_densenet40_k12", TINY])
def test_layers_are_those_that_a_block_concatenates(name: str) -> None:
    """The outputs of the modules, in the order of the channels of the block's output."""
    network = timm.create_model(name.partition(".")[0]).eval()
    outputs: dict[str, list[torch.Tensor]] = {}
    for block_number, block in enumerate((m for n, m in network.features.named_children() if "block" in n), 1):
        seen = outputs.setdefault(f"block{block_number}", [])
        block.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        for layer in block.children():
            layer.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        block.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
    with torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    layers, notes = find_layers(
        {"model": name, "pool": ["avg"]}, {column: seen[-1].shape[1] for column, seen in outputs.items()}
    )
    assert not notes
    for column, (*parts, whole) in outputs.items():
        assert widths_of(layers, column) == [part.shape[1] for part in parts]
        assert torch.equal(torch.cat(parts, 1), whole)
    assert [layer.name for layer in layers][:3] == ["input", "layer 1", "layer 2"]


def test_a_densenet_has_58_layers_and_4_inputs() -> None:
    widths = {"block1_avg": 256, "block1_max": 256, "block2_avg": 512, "block3_avg": 1024, "block4_avg": 1024}
    provenance = {"model": "densefeat_densenet121.ra_in1k", "pool": ["avg", "max"]}
    layers, notes = find_layers(provenance, widths)
    averaged = [layer for layer in layers if layer.column != "block1_max"]
    assert len(averaged) == 62
    assert widths_of(layers, "block1_max") == widths_of(layers, "block1_avg") == [64] + [32] * 6
    assert widths_of(layers, "block4_avg") == [512] + [32] * 16
    assert not notes


def test_layers_of_timms_densenets() -> None:
    widths = {"features.norm0": 64, "features.denseblock1": 256, "features.norm5": 1024}
    layers, notes = find_layers({"model": "densenet121.tv_in1k", "pool": ["avg"]}, widths)
    assert widths_of(layers, "features.denseblock1") == [64] + [32] * 6
    assert widths_of(layers, "features.norm5") == [512] + [32] * 16
    assert layers[0] == Layer("features.norm0", "all", 64)
    assert notes == [f"features.norm0: {TOLD}"]


@pytest.mark.parametrize("model", ["densefeat_delugenet92", "resnet18", "MyDenseNet", "densenet_of_mine", "gone/run", None, 3])
def test_other_networks(model: Any) -> None:
    layers, notes = find_layers({"model": model}, {"block1": 4, "block2": 6})
    assert layers == [Layer("block1", "all", 4), Layer("block2", "all", 6)]
    assert notes == [f"all columns: {TOLD}"]


def test_a_column_of_another_width_than_its_block() -> None:
    layers, notes = find_layers({"model": BC100, "pool": ["avg"]}, {"block1": 216, "block2": 299})
    assert widths_of(layers, "block1") == [24] + [12] * 16
    assert layers[-1] == Layer("block2", "all", 299)
    assert notes == [f"block2: {TOLD}"]


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_layers_of_a_run(head: str, tmp_path: Path) -> None:
    network = timm.create_model(TINY)
    assert isinstance(network, DenseNet)
    entries = {"densefeat": {"num_classes": 10, "task": "single", "head": head, "head_width": 8}}
    write_config(tmp_path / CONFIG, network, entries)
    layers, notes = find_layers({"model": str(tmp_path), "pool": ["avg"]}, {"block1": 24})
    assert (widths_of(layers, "block1"), notes) == ([12, 6, 6], [])
    (tmp_path / CONFIG).write_text("{")
    assert find_layers({"model": str(tmp_path)}, {"block1": 24})[0] == [Layer("block1", "all", 24)]
