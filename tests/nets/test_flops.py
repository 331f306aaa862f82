"""Arithmetic is counted as by hand, and as in the papers."""

import pytest
import timm
import torch

from densefeat import DenseNet
from densefeat.nets import count_flops, count_network_flops
from support.helpers import BUNDLED
from support.small_nets import deluge


@pytest.mark.parametrize("pool_first", [False, True])
def test_a_count_by_hand(pool_first: bool) -> None:
    model = DenseNet(4, (1, 1), num_init_features=8, bottleneck=True, bn_size=2, stem_type="cifar", num_classes=3).eval()
    stem = 9 * 9 * 8 * 3 * 9
    first = 9 * 9 * (8 * 8 + 4 * 8 * 9)  # 1×1 to 8, 3×3 to 4, of 8 channels
    transition = (4 * 4 if pool_first else 9 * 9) * 6 * 12  # half of 12 channels; the pool drops the odd row
    second = 4 * 4 * (8 * 6 + 4 * 8 * 9)
    classifier = 3 * 10
    assert count_network_flops(model, 9, pool_first) == 2 * (stem + first + transition + second + classifier)


def test_the_model_stays_as_it_is() -> None:
    model = deluge().train()
    x = torch.randn(2, 3, 16, 16)
    assert (
        count_flops(lambda: model(x))
        == 2 * count_network_flops(model, 16)
        == 2 * count_network_flops(model, 16, pool_first=True)
        > 0
    )
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_densenet121_is_as_large_as_its_paper_says() -> None:
    model = timm.create_model("densefeat_densenet121")
    plain = count_network_flops(model, 224)
    assert plain == pytest.approx(2 * 2.87e9, rel=0.02)  # multiplications and additions
    transitions = sum(2 * size**2 * channels * channels // 2 for size, channels in ((56, 256), (28, 512), (14, 1024)))
    assert plain - count_network_flops(model, 224, pool_first=True) == transitions * 3 // 4


def test_flops_grow_with_the_pixels() -> None:
    model = timm.create_model(BUNDLED, num_classes=0)
    assert count_network_flops(model, 64) == 4 * count_network_flops(model, 32)
