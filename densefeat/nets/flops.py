"""Count the arithmetic of a network."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from densefeat.nets.dense_net import Transition


def count_flops(compute: Callable[[], object]) -> int:
    """Count the FLOPs of the convolutions and linear layers that a call runs, a multiply-add counted as two."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def count_network_flops(model: nn.Module, size: int, pool_first: bool = False) -> int:
    """Count the FLOPs of a network for one image ``(1, 3, size, size)``; nothing is computed.

    ``pool_first``: count transitions that convolve the pooled map, as our engines do.
    """
    sketch = deepcopy(model).to("meta").eval()
    for module in sketch.modules():
        if pool_first and isinstance(module, Transition):
            module.conv, module.pool = module.pool, module.conv  # type: ignore[assignment]
    with torch.no_grad():
        return count_flops(lambda: sketch(torch.empty(1, 3, size, size, device="meta")))
