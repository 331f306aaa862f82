"""Small untrained networks of both kinds, in eval mode, the same at every call."""

from typing import Any

import torch

from densefeat.nets.deluge_net import DelugeNet
from densefeat.nets.dense_net import DenseNet
from support.helpers import randomize_statistics


def dense(**changes: Any) -> DenseNet:
    """DenseNet-BC of two blocks, of 2 and 3 layers, for 5 classes."""
    torch.manual_seed(0)
    structure = dict(growth_rate=4, block_config=(2, 3), stem_type="cifar", num_classes=5) | changes
    model = DenseNet(**structure).eval()
    randomize_statistics(model)
    return model


def deluge(**changes: Any) -> DelugeNet:
    """DelugeNet of two blocks of 3 composite layers (the first one's first opens it), for 5 classes."""
    torch.manual_seed(0)
    structure = dict(block_widths=(4, 6), block_config=(3, 3), stem_type="cifar", num_classes=5) | changes
    model = DelugeNet(**structure).eval()
    randomize_statistics(model)
    return model
