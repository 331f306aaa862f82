"""What the machine could do at most, and how much arithmetic a network is."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from densefeat.nets import Transition

# images, channels in and out, kernel, pixels of a side: shapes of which one is the fastest on most processors
CONVOLUTIONS = ((8, 256, 256, 3, 28), (8, 128, 128, 3, 56), (8, 512, 512, 3, 14), (8, 1024, 512, 1, 28), (8, 512, 2048, 1, 28))
REPEATS = 3
GEMM = 8192  # rows and columns
COPIED = 2**30  # bytes
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def network_flops(name: str, size: int, pool_first: bool = False) -> int:
    """Of one image's convolutions, a multiplication and an addition counted as two.

    ``pool_first``: with transitions that convolve the pooled map, as our engines have them.
    """
    with torch.device("meta"):
        return model_flops(timm.create_model(name).eval(), torch.empty(1, 3, size, size), pool_first)


def model_flops(model: nn.Module, x: torch.Tensor, pool_first: bool = False) -> int:
    """As :func:`network_flops`, for a batch ``x (N, C, H, W)``; on the meta device nothing is computed."""
    total = 0
    parents = [module for module in model.modules() if isinstance(module, Transition)]
    pooled = {id(parent.conv) for parent in parents} if pool_first else set()

    def count(conv: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        n, channels, height, width = output.shape
        pixels = (height // 2) * (width // 2) if id(conv) in pooled else height * width
        total += 2 * n * pixels * channels * conv.in_channels // conv.groups * conv.kernel_size[0] * conv.kernel_size[1]

    handles = [each.register_forward_hook(count) for each in model.modules() if isinstance(each, nn.Conv2d)]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return total


class ProcessorRates:
    """oneDNN's convolutions: of several shapes the fastest, found once, measured again at every turn; FLOP/s a precision."""

    def __init__(self, precisions: Sequence[str]) -> None:
        self.fastest = {each: max((shape_of(s, DTYPES[each]) for s in CONVOLUTIONS), key=rate) for each in precisions}

    def turn(self) -> dict[str, float]:
        return {f"{precision} convolution": rate(work) for precision, work in self.fastest.items()}


class GpuRates:
    """Matrix products, FLOP/s a precision, and bytes copied, read and written counted both."""

    def __init__(self, precisions: Sequence[str], device: torch.device) -> None:
        self.products = {each: gemm(DTYPES[each], device) for each in precisions}
        source, target = (torch.empty(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
        self.copy: Work = (2 * COPIED, lambda: target.copy_(source))

    def turn(self) -> dict[str, float]:
        rates = {f"{precision} product": rate(work, torch.cuda.synchronize) for precision, work in self.products.items()}
        return rates | {"copy": rate(self.copy, torch.cuda.synchronize)}


Work = tuple[int, Callable[[], object]]  # FLOPs or bytes of a call, and the call


def shape_of(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> Work:
    n, channels_in, channels_out, kernel, size = shape
    x = torch.randn(n, channels_in, size, size).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(channels_out, channels_in, kernel, kernel).to(dtype, memory_format=torch.channels_last)
    flops = 2 * n * channels_in * channels_out * kernel**2 * size**2
    return flops, lambda: F.conv2d(x, weight, padding=kernel // 2)


def gemm(dtype: torch.dtype, device: torch.device) -> Work:
    a, b = (torch.randn(GEMM, GEMM, device=device).to(dtype) for _ in range(2))
    return 2 * GEMM**3, lambda: a @ b


def rate(work: Work, wait: Callable[[], object] = lambda: None) -> float:
    """The largest of a few, a second."""
    amount, call = work
    call()
    seconds = []
    for _ in range(REPEATS):
        wait()
        began = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - began)
    return amount / min(seconds)
