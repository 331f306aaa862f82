"""What the ideas of the CPU engine gain, each beside what it replaces.

    python benchmarks/cpu_engine.py

Norm and ReLU: torch's batch norm and ReLU, and the one maximum of ``Clip``, over the same map. DelugeNet's sum: a norm for each
output, added up, and one depthwise convolution over their stack. A pass of DenseNet-121: every operation split between the
threads, and the images shared out between them. Changed weights: noticed by comparing every byte, and by torch's count of
writes. The two take turns within each round; the table has medians over the rounds, and ratios of the same round.
"""

import platform
import statistics
import time
from collections.abc import Callable

import click
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

import densefeat  # noqa: F401  (registers the models)
from densefeat.features.engines.cpu.clip import Clip
from densefeat.features.engines.cpu.deluge_stage import Stack, WeightedSum
from densefeat.features.engines.cpu.engine import BufferEngine
from densefeat.features.engines.cpu.memory import Memory
from densefeat.features.engines.engine import EngineSpec
from densefeat.features.engines.folded import Norm, Sum, fold
from densefeat.features.engines.snapshot import Snapshot

Work = Callable[[], object]


def norm_and_relu(dtype: torch.dtype) -> tuple[Work, Work]:
    """Over a map of 256 channels, 28×28, of two images: what a lane has in hand."""
    x = torch.randn(2, 256, 28, 28).to(dtype, memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(256).eval().to(dtype)
    clip = Clip(Norm(torch.ones(256).double(), torch.randn(256).double()), dtype)
    out = torch.empty_like(x)
    return lambda: F.relu_(norm(x)), lambda: clip(x, out)


def deluge_sum(dtype: torch.dtype) -> tuple[Work, Work]:
    """Of 8 outputs of 64 channels, 32×32, of 8 images."""
    outputs = [torch.randn(8, 64, 32, 32).to(dtype, memory_format=torch.channels_last) for _ in range(8)]
    norms = [nn.BatchNorm2d(64).eval().to(dtype) for _ in outputs]
    stack = Stack(outputs[0], Memory(dtype), "block", len(outputs))
    for output in outputs[1:]:
        stack.append(output)
    weighted = WeightedSum(Sum(torch.ones(8, 64).double(), torch.zeros(64).double()), dtype)
    return lambda: sum(norm(x) for norm, x in zip(norms, outputs, strict=True)), lambda: weighted(stack)


def whole_pass(network: nn.Module, batch: int, dtype: torch.dtype) -> tuple[Work, Work]:
    """Of so many images of 224²."""
    x = torch.randn(batch, 3, 224, 224)
    wanted = EngineSpec((0, 1, 2, 3), "norm", torch.device("cpu"), "bf16" if dtype == torch.bfloat16 else "fp32")
    shared, split = (BufferEngine(fold(network), wanted) for _ in range(2))
    split.lanes.count = lambda _: 1  # type: ignore[method-assign]
    return lambda: split(x, mean=True, maps=False), lambda: shared(x, mean=True, maps=False)


def noticing(network: nn.Module) -> tuple[Work, Work]:
    thorough, counting = Snapshot(network, thorough=True), Snapshot(network, thorough=False)
    return thorough.holds, counting.holds


def seconds(work: Work, least: float) -> float:
    """Of one call, over as many as take ``least`` seconds."""
    calls, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < least or not calls:
        work()
        calls += 1
    return passed / calls


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--least", default=0.5, show_default=True, help="Seconds of each measurement.")
@click.option("--batch", type=click.IntRange(2), default=8, show_default=True, help="Images of a pass.")
@torch.inference_mode()
def main(rounds: int, least: float, batch: int) -> None:
    torch.manual_seed(0)
    with torch.inference_mode(False):
        network = timm.create_model("densefeat_densenet121").eval()
    table = Table(
        box=None, title=f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds"
    )
    for column in ("", "type", "before, ms", "ours, ms", "ratio (range)"):
        table.add_column(column, justify="left" if column in ("", "type") else "right")
    for name, kind, (before, ours) in compared(network, batch):
        before(), ours()
        pairs = [(seconds(before, least), seconds(ours, least)) for _ in range(rounds)]
        medians = [f"{1e3 * statistics.median(values):.2f}" for values in zip(*pairs, strict=True)]
        ratios = [a / b for a, b in pairs]
        table.add_row(name, kind, *medians, f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    Console(width=120, highlight=False).print(table)


def compared(network: nn.Module, batch: int) -> list[tuple[str, str, tuple[Work, Work]]]:
    rows = []
    for kind, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        rows.append(("norm and ReLU as one maximum", kind, norm_and_relu(dtype)))
        rows.append(("DelugeNet's sum as a depthwise convolution", kind, deluge_sum(dtype)))
        rows.append((f"images shared out, a pass of {batch}", kind, whole_pass(network, batch, dtype)))
    return [*rows, ("changed weights by the count of writes", "", noticing(network))]


if __name__ == "__main__":
    main()
