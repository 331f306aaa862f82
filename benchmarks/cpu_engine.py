"""What the ideas of the CPU engine gain, each beside what it replaces.

    python benchmarks/cpu_engine.py

Norm and ReLU: torch's batch norm and ReLU, and the single maximum of ``Clip``, over the same map. DelugeNet's sum: a norm for
each output, added up, and one depthwise convolution over their stack. A pass of DenseNet-121: every operation split between the
threads, and the images shared out between them. Changed weights: noticed by comparing every byte, and by torch's count of
writes. The two take turns within each round.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import timm
import torch
import torch.nn.functional as F
from torch import nn

import densefeat  # noqa: F401  (registers the models)
from densefeat.bench import Report, benchmark_options, measure_rounds, rate_rows, time_call
from densefeat.features.engines.cpu.engine import BufferEngine, OutputStack, WeightedSum
from densefeat.features.engines.cpu.kernels import Clip, Workspace
from densefeat.features.engines.engine import EngineSpec
from densefeat.features.engines.folded import FoldedNorm, FoldedSum, fold_network
from densefeat.features.engines.snapshot import Snapshot

Pair = tuple[Callable[[], object], Callable[[], object]]  # before, ours
COLUMNS = "=arm | ms=milliseconds:.2f | times as fast (range)=ratio"


def norm_and_relu(dtype: torch.dtype) -> Pair:
    """Over a map of 256 channels, 28×28, of two images: what a thread has at a time."""
    x = torch.randn(2, 256, 28, 28).to(dtype, memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(256).eval().to(dtype)
    clip = Clip(FoldedNorm(torch.ones(256).double(), torch.randn(256).double()), dtype)
    out = torch.empty_like(x)
    return lambda: F.relu_(norm(x)), lambda: clip(x, out)


def deluge_sum(dtype: torch.dtype) -> Pair:
    """Over 8 outputs of 64 channels, 32×32, of 8 images."""
    outputs = [torch.randn(8, 64, 32, 32).to(dtype, memory_format=torch.channels_last) for _ in range(8)]
    norms = [nn.BatchNorm2d(64).eval().to(dtype) for _ in outputs]
    stack = OutputStack(outputs[0], Workspace(dtype), "block", len(outputs))
    for output in outputs[1:]:
        stack.append(output)
    weighted = WeightedSum(FoldedSum(torch.ones(8, 64).double(), torch.zeros(64).double()), dtype)
    return lambda: sum(norm(x) for norm, x in zip(norms, outputs, strict=True)), lambda: weighted(stack)


def whole_pass(network: nn.Module, batch: int, dtype: torch.dtype) -> Pair:
    x = torch.randn(batch, 3, 224, 224)
    spec = EngineSpec((0, 1, 2, 3), "norm", "bf16" if dtype == torch.bfloat16 else "fp32", torch.device("cpu"))
    shared, split = (BufferEngine(fold_network(network), spec) for _ in range(2))
    split.lanes.count = lambda _: 1  # type: ignore[method-assign]
    return lambda: split(x, mean=True, maps=False), lambda: shared(x, mean=True, maps=False)


@click.command()
@click.option("--least", default=0.5, show_default=True, help="Seconds of each measurement.")
@click.option("--batch", type=click.IntRange(2), default=8, show_default=True, help="Images of a pass.")
@benchmark_options(rounds=7)
@torch.inference_mode()
def main(least: float, batch: int, rounds: int, file: Path | None) -> None:
    """Measure and print."""
    torch.manual_seed(0)
    with torch.inference_mode(False):
        network = timm.create_model("densefeat_densenet121").eval()
    report = Report("ideas of the CPU engine", file)
    thorough, counting = Snapshot(network, thorough=True), Snapshot(network, thorough=False)
    ideas: dict[str, Pair] = {"changed weights by the count of writes": (thorough.is_current, counting.is_current)}
    for kind, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        ideas[f"norm and ReLU as one maximum, {kind}"] = norm_and_relu(dtype)
        ideas[f"DelugeNet's sum as a depthwise convolution, {kind}"] = deluge_sum(dtype)
        ideas[f"images shared out, a pass of {batch}, {kind}"] = whole_pass(network, batch, dtype)
    for idea, (before, ours) in ideas.items():
        before(), ours()
        works = {"before": partial(time_call, before, least=least), "ours": partial(time_call, ours, least=least)}
        rows = rate_rows(measure_rounds(works, rounds), "before")
        report.add(idea, [row | {"milliseconds": 1e3 * row["seconds"]} for row in rows], COLUMNS)


if __name__ == "__main__":
    main()
