"""A network that is cut down to the channels that are read: the same features, by less arithmetic."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from densefeat import FeatureExtractor
from densefeat.export.answer import ProbeAnswer
from densefeat.export.module import ExportedNet, Outputs
from densefeat.nets import DenseNet, count_flops
from densefeat.probing.fitting import LinearHead
from densefeat.probing.probe_file import Probe
from support.helpers import randomize_statistics, relative_difference

BLOCKS = (3, 3, 2)
GROWTH = 4
PLAIN: dict[str, Any] = dict(bottleneck=False, num_init_features=8)


def small_densenet(stem: str = "cifar", **structure: Any) -> DenseNet:
    torch.manual_seed(0)
    model = DenseNet(growth_rate=GROWTH, block_config=BLOCKS, stem_type=stem, num_classes=5, **structure)
    model.pretrained_cfg = {
        "input_size": (3, 48, 48),
        "mean": (0.5,) * 3,
        "std": (0.2,) * 3,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    return randomize_statistics(model).eval()


def probe_reading(columns: dict[str, int], reads: dict[str, list[int]], classes: int = 3) -> Probe:
    """A linear probe whose weights are 0 for all channels but some."""
    random = np.random.default_rng(0)
    weight = np.zeros((classes, sum(columns.values())), np.float32)
    start = 0
    for name, width in columns.items():
        channels = np.asarray(reads[name], int) + start
        weight[:, channels] = random.standard_normal((classes, len(channels)))
        start += width
    head = LinearHead(weight, random.standard_normal(classes).astype(np.float32))
    return Probe("single", tuple("abc"[:classes]), tuple(columns), {}, head)


def cut(model: nn.Module, reads: dict[str, list[int]], **outputs: Any) -> tuple[ExportedNet, torch.Tensor, torch.Tensor]:
    """The module of a probe that reads some channels, the features that it should read of two images, and those that it does."""
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    whole = FeatureExtractor(model, device="cpu", backend="reference", **outputs).forward(images)
    columns = {name: values.shape[1] for name, values in whole.items() if name in reads}
    net = ExportedNet(model, Outputs("features", **outputs), None, ProbeAnswer(probe_reading(columns, reads), columns)).eval()
    expected = torch.cat([whole[name][:, reads[name]] for name in columns], 1)
    with torch.no_grad():
        return net, expected, net(images)["features"]


# stem 8 channels (2k), block 1: 8 + 3 · 4 = 20, block 2: 10 + 12 = 22, block 3: 11 + 8 = 19
CUTS: dict[str, tuple[dict[str, list[int]], int, int]] = {  # channels read, the last block and its layers that stay
    "the middle of a block": ({"block2": [1, 12, 15]}, 2, 2),
    "one channel of a layer": ({"block2": [21]}, 2, 3),
    "the first layer": ({"block3": [3, 11]}, 3, 1),
    "a block's input": ({"block2": [0, 4, 9]}, 2, 0),
    "the stem": ({"block1": [2, 3]}, 1, 0),
    "two blocks": ({"block1": [0, 19], "block2": [3, 13]}, 2, 1),
    "a whole block": ({"block1": list(range(20))}, 1, 3),
    "nothing of a later block": ({"block1": [5, 8], "block3": []}, 1, 1),
}


@pytest.mark.parametrize("tap", ["raw", "norm"])
@pytest.mark.parametrize("case", CUTS)
def test_a_cut_network_computes_the_same(case: str, tap: str) -> None:
    reads, block, layers = CUTS[case]
    for structure, pool in ((dict(stem="cifar"), "avg"), (dict(stem="imagenet"), "max"), (PLAIN, "gem:4")):
        net, expected, found = cut(small_densenet(**structure), reads, tap=tap, pool=pool)
        assert relative_difference(found, expected) < 1e-6
        names = [name for name, _ in net.model.features.named_children()]
        assert f"denseblock{block + 1}" not in names
        assert len(net.model.features.get_submodule(f"denseblock{block}")) == layers


def test_several_pools_read_what_each_needs() -> None:
    reads = {"block2_avg": [0, 11], "block2_max": [13, 20]}
    net, expected, found = cut(small_densenet(), reads, pool=("avg", "max"), tap="raw")
    assert relative_difference(found, expected) < 1e-6
    block = net.model.features.denseblock2
    assert list(block) == ["denselayer1", "denselayer2", "denselayer3"]
    assert block.denselayer3.conv2.weight.shape == (1, 16, 3, 3)  # of channels 18 to 21 one is read


def test_other_networks_end_after_the_last_block() -> None:
    torch.manual_seed(0)
    deluge = timm.create_model("densefeat_delugenet146", block_widths=(4, 8, 8), block_config=(3, 2, 2), num_classes=3)
    for model in (randomize_statistics(deluge).eval(), randomize_statistics(timm.create_model("resnet18")).eval()):
        first, second = [tap.name for tap in FeatureExtractor(model, device="cpu", backend="reference").taps[:2]]
        for tap in ("norm", "raw"):
            _, expected, found = cut(model, {first: [0, 3], second: [1, 2]}, tap=tap)
            assert relative_difference(found, expected) < 1e-6


def count_macs(net: nn.Module) -> int:
    with torch.no_grad():
        return count_flops(lambda: net(torch.zeros(1, 3, 48, 48))) // 2


def test_arithmetic_counted_by_hand() -> None:
    """Channel 15 of block 2 is of its second layer: it has 4, of which two are read."""
    model = small_densenet()
    net, *_ = cut(model, {"block2": [1, 15, 17]}, tap="raw")
    large, half = 48 * 48, 24 * 24
    stem = large * 3 * 8 * 9
    block1 = large * sum(width * 16 + 16 * 4 * 9 for width in (8, 12, 16))
    transition = large * 20 * 10
    block2 = half * ((10 * 16 + 16 * 4 * 9) + (14 * 16 + 16 * 2 * 9))
    assert count_macs(net) == stem + block1 + transition + block2 + 3 * 3
    rest = half * (16 * 2 * 9 + 18 * 16 + 16 * 4 * 9 + 22 * 11)
    block3 = 12 * 12 * sum(width * 16 + 16 * 4 * 9 for width in (11, 15))
    assert count_macs(model) == stem + block1 + transition + block2 + rest + block3 + 19 * 5
