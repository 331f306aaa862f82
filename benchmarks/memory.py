"""What training holds for the backward pass, and what holding less costs: plain, by timm's checkpointing, memory-efficient.

    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda --networks densenet121,densenet_bc190_k40

Held: the bytes of all tensors that autograd keeps after a forward pass in float32, each storage once, that one more image in
the batch adds. Counted by saved-tensor hooks on torch's meta device, so exactly and on any machine; buffers of a device's own
(cuDNN's) are not in it. With --device cuda, or --time on a CPU, also one step (forward and backward): its time, and on a GPU
its peak memory beyond the parameters. The three take turns within each round; the table has medians over the rounds, ratios to
plain of the same round.

timm's is timm's own DenseNet with ``memory_efficient=True`` for the ImageNet networks; for CIFAR's, which timm's class cannot
build, our network with timm's way: torch's checkpoint around concatenation, BN, ReLU and first convolution of each layer.
"""

import json
import platform
import statistics
import time
from pathlib import Path
from types import MethodType
from typing import Any

import click
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timm.models.densenet import DenseNet as TimmDenseNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from densefeat.nets import VARIANTS, DenseLayer

PREFIX = "densefeat_"
CIFAR = ("densenet40_k12", "densenet100_k12", "densenet_bc100_k12", "densenet_bc190_k40", "densenet_bc250_k24")
IMAGENET = ("densenet121", "densenet169", "densenet201", "densenet264")
WAYS = ("plain", "timm", "memory_efficient")


def build(network: str, way: str, device: str) -> nn.Module:
    name = PREFIX + network
    if way != "timm":
        model = timm.create_model(name, memory_efficient=way == "memory_efficient", device=device)
    elif network in IMAGENET:
        model = TimmDenseNet(**VARIANTS[name][1], memory_efficient=True, device=device)
    else:
        model = timm.create_model(name, device=device)
        for layer in model.modules():
            if isinstance(layer, DenseLayer):
                layer.forward = MethodType(checkpointed_forward, layer)
    return model.train()


def checkpointed_forward(layer: DenseLayer, features: list[torch.Tensor], _: list[torch.Tensor]) -> torch.Tensor:
    x = checkpoint(lambda *xs: layer.conv1(layer.norm1(torch.cat(xs, 1))), *features, use_reentrant=False)
    return layer.conv2(layer.norm2(x))


def images(network: str, count: int, device: str) -> torch.Tensor:
    return torch.randn(count, *timm.get_pretrained_cfg(PREFIX + network).input_size, device=device)


def held_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Of all tensors that autograd keeps after a forward pass, each storage once."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(storage.nbytes() for storage in storages.values())


def held_per_image(network: str, way: str) -> int:
    model = build(network, way, "meta")
    one, two = (held_bytes(model, images(network, count, "meta")) for count in (1, 2))
    return two - one


def step(model: nn.Module, x: torch.Tensor) -> tuple[float, int | None]:
    """Seconds, and on a GPU the most bytes at once, of a forward and a backward pass."""
    model.zero_grad()
    gpu = x.is_cuda
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    began = time.perf_counter()
    F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return seconds, torch.cuda.max_memory_allocated() - before if gpu else None


def step_or_none(model: nn.Module, x: torch.Tensor) -> tuple[float, int | None] | None:
    try:
        return step(model, x)
    except torch.OutOfMemoryError:
        model.zero_grad()
        return None


def measure_steps(network: str, batch_size: int, device: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Medians over the rounds, after one to warm up; nothing for what does not fit in the GPU's memory."""
    models = {way: build(network, way, device) for way in WAYS}
    x = images(network, batch_size, device)
    steps: dict[str, list[Any]] = {way: [] for way in WAYS}
    for i in range(rounds + 1):
        for way in WAYS[:: 1 if i % 2 else -1]:
            steps[way].append(step_or_none(models[way], x))
    results: dict[str, dict[str, Any]] = {}
    for way, (_, *values) in steps.items():
        if None in values:
            continue
        results[way] = {"seconds": statistics.median(seconds for seconds, _ in values), "peak_bytes": values[-1][1]}
        if None not in steps["plain"]:
            ratios = [own[0] / plain[0] for own, plain in zip(values, steps["plain"][1:], strict=True)]
            results[way]["seconds_ratio"] = statistics.median(ratios)
    return results


def print_table(rows: list[dict[str, Any]], columns: dict[str, tuple[str, float]]) -> None:
    """``columns``: key to title and unit; each with its ratio to plain beside it."""
    table = Table("network", "way", box=None, pad_edge=False)
    for title, _ in columns.values():
        table.add_column(title, justify="right")
        table.add_column("to plain", justify="right")
    for row in rows:
        plain = next(other for other in rows if other["network"] == row["network"])
        cells = []
        for key, (_, unit) in columns.items():
            fits = key in row
            cells.append(f"{row[key] / unit:,.1f}" if fits else "does not fit")
            cells.append(f"{row.get(f'{key}_ratio', row[key] / plain[key]):.2f}" if fits and key in plain else "")
        table.add_row(row["network"], row["way"], *cells)
    Console(width=120).print(table)


@click.command()
@click.option("--device", default="cpu", show_default=True, help="Where steps are timed.")
@click.option("--networks", default=",".join(CIFAR + IMAGENET), show_default=True, help="Separated by commas.")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.  [default: 64 on a GPU, else 4]")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--time", "timed", is_flag=True, help="Time steps on a CPU too.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers to this file too.")
def main(device: str, networks: str, batch_size: int | None, rounds: int, timed: bool, file: Path | None) -> None:
    """Measure and print."""
    names = networks.split(",")
    if unknown := sorted(set(names) - {*CIFAR, *IMAGENET}):
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(CIFAR + IMAGENET)}", param_hint="--networks")
    on_gpu = torch.device(device).type == "cuda"
    timed = timed or on_gpu
    batch_size = batch_size or (64 if on_gpu else 4)
    machine = torch.cuda.get_device_name(device) if on_gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, timm {timm.__version__}; {machine}" + f"; batches of {batch_size}" * timed)
    rows = []
    for network in names:
        steps = measure_steps(network, batch_size, device, rounds) if timed else {}
        for way in WAYS:
            held = held_per_image(network, way)
            rows.append({"network": network, "way": way, "held_bytes": held} | steps.get(way, {}))
    columns = {"held_bytes": ("held, MB/image", 1e6)}
    if timed:
        columns["seconds"] = ("step, ms", 1e-3)
    if on_gpu:
        columns["peak_bytes"] = ("peak, MB", 1e6)
    print_table(rows, columns)
    if file:
        told = {"torch": torch.__version__, "machine": machine, "batch_size": batch_size if timed else None, "rows": rows}
        file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
