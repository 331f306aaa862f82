"""Arithmetic counted, and the machine's largest rates."""

import pytest
import torch

from densefeat import DelugeNet, DenseNet
from densefeat.bench.ceiling import CONVOLUTIONS, ProcessorRates, model_flops, network_flops, shape_of
from support.helpers import BUNDLED


@pytest.mark.parametrize("pool_first", [False, True])
def test_a_hand_count(pool_first: bool) -> None:
    model = DenseNet(4, (1, 1), num_init_features=8, bottleneck=True, bn_size=2, stem_type="cifar", num_classes=3).eval()
    stem = 9 * 9 * 8 * 3 * 9
    first = 9 * 9 * (8 * 8 + 4 * 8 * 9)  # 1×1 to 8, 3×3 to 4, of 8 channels
    transition = (4 * 4 if pool_first else 9 * 9) * 6 * 12  # half of 12 channels; the pool drops the odd row
    second = 4 * 4 * (8 * 6 + 4 * 8 * 9)
    assert model_flops(model, torch.randn(2, 3, 9, 9), pool_first) == 2 * 2 * (stem + first + transition + second)


def test_nothing_is_left_hooked() -> None:
    model = DelugeNet((4, 8), (2, 2), stem_type="cifar").eval()
    x = torch.randn(1, 3, 8, 8)
    assert model_flops(model, x) == model_flops(model, x) == model_flops(model, x, pool_first=True) > 0
    assert not any(module._forward_hooks for module in model.modules())


def test_densenet121_is_as_large_as_its_paper_says() -> None:
    plain = network_flops("densefeat_densenet121", 224)
    assert plain == pytest.approx(2 * 2.87e9, rel=0.02)  # multiplications and additions
    transitions = sum(2 * size**2 * channels * channels // 2 for size, channels in ((56, 256), (28, 512), (14, 1024)))
    assert plain - network_flops("densefeat_densenet121", 224, pool_first=True) == transitions * 3 // 4


def test_flops_grow_with_the_pixels() -> None:
    assert network_flops(BUNDLED, 64) == 4 * network_flops(BUNDLED, 32)


def test_a_convolution_has_the_flops_it_is_counted_with() -> None:
    shape = CONVOLUTIONS[0]
    flops, call = shape_of(shape, torch.float32)
    n, channels_in, channels_out, kernel, size = shape
    conv = torch.nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    assert call().shape == (n, channels_out, size, size)
    assert flops == model_flops(conv, torch.empty(n, channels_in, size, size))


def test_rates_of_the_processor_are_positive() -> None:
    rates = ProcessorRates(["fp32"])
    assert rates.fastest["fp32"][0] > 1e9
    (rate,) = rates.turn().values()
    assert 1e8 < rate < 1e15
