"""How much arithmetic a network is."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from densefeat.nets.dense_net import Transition


def count_flops(compute: Callable[[], object]) -> int:
    """FLOPs of the convolutions and linear layers that a call runs, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def count_network_flops(model: nn.Module, size: int, pool_first: bool = False) -> int:
    """As :func:`count_flops`, for one image ``(1, 3, size, size)``; nothing is computed.

    ``pool_first``: with transitions that convolve the pooled map, as our engines do.
    """
    sketch = deepcopy(model).to("meta").eval()
    for module in sketch.modules():
        if pool_first and isinstance(module, Transition):
            module.conv, module.pool = module.pool, module.conv  # type: ignore[assignment]
    with torch.no_grad():
        return count_flops(lambda: sketch(torch.empty(1, 3, size, size, device="meta")))
