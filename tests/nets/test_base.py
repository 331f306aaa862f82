"""The shared stage walk, head and initialisation."""

import math

import pytest
import timm
import torch
from torch import nn

from densefeat.nets.base import he_init


@pytest.mark.parametrize(("channels", "out", "kernel"), [(64, 256, 1), (256, 64, 3), (3, 512, 7)])
def test_he_init_is_fan_out(channels: int, out: int, kernel: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, out, kernel)
    he_init(convolution)
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / (kernel**2 * out)), rel=0.03)


def test_a_new_network_has_he_convolutions_and_a_classifier_of_zero_bias() -> None:
    torch.manual_seed(0)
    model = timm.create_model("densefeat_densenet121")
    conv1 = model.features.denseblock4.denselayer16.conv1
    assert conv1.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.03)
    assert torch.equal(model.classifier.bias, torch.zeros(1000))


def test_other_output_formats_are_refused() -> None:
    model = timm.create_model("densefeat_densenet_bc100_k12")
    with pytest.raises(ValueError, match="output_fmt 'NLC': these networks give 'NCHW' maps only"):
        model.forward_intermediates(torch.zeros(1, 3, 32, 32), output_fmt="NLC")
