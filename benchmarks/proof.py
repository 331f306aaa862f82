"""Which faster backends prove themselves on this machine: equal to the plain network, and how many times as fast.

    python benchmarks/proof.py --models resnet50,rdnet_tiny,efficientnet_b0
    python benchmarks/proof.py --device cuda --models densefeat_densenet121,densefeat_delugenet146 --precision bf16

Random weights, normalised noise; what `densefeat extract` does at the beginning of a long job. Times are by the clock;
that of a proof is of all backends tried, with tracing and compiling.
"""

import time
from pathlib import Path

import click
import timm
import torch
from torch import nn

from densefeat import FeatureExtractor
from densefeat.base import keep_freed_memory
from densefeat.bench import Report, benchmark_options, calibrated_network
from densefeat.nets import VARIANTS

MODELS = {"cpu": "resnet50,rdnet_tiny,efficientnet_b0", "cuda": "densefeat_densenet121,densefeat_densenet_bc100_k12"}


def make_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return calibrated_network(name) if name in VARIANTS else timm.create_model(name).eval()


@click.command()
@click.option("--models", help=f"[default: {MODELS['cpu']}; on a GPU {MODELS['cuda']}]")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@benchmark_options()
def main(models: str | None, batch: int, precision: str, device: str, file: Path | None) -> None:
    """Measure and print."""
    report = Report(f"proofs: batch {batch}, {precision}", file, device)
    rows = []
    for name in (models or MODELS[device]).split(","):
        extractor = FeatureExtractor(make_network(name), device=device, precision=precision)
        size = extractor.preprocessing.size
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        start = time.perf_counter()
        trials = extractor.prove(images)
        seconds = time.perf_counter() - start
        rows += [
            {"network": f"{name}, {size}²"} | trial.to_json() | {"verdict": trial.refused or "used", "proof": seconds}
            for trial in trials
        ]
    columns = "network=network | backend=backend | difference=difference:.1e | times as fast=speed:.2f | =verdict"
    report.add("found", rows, f"{columns} | proof, s=proof:.1f")


if __name__ == "__main__":
    keep_freed_memory()
    main()
