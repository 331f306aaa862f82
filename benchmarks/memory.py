"""What training holds for the backward pass, and what holding less costs: plain, by timm's checkpointing, memory-efficient.

    python benchmarks/memory.py
    python benchmarks/memory.py --time --networks densenet121,densenet_bc100_k12
    python benchmarks/memory.py --device cuda --networks densenet121,densenet_bc190_k40

Held: the bytes of all tensors that autograd keeps after a forward pass in float32, each storage once, that one more image in
the batch adds. Saved-tensor hooks count them on torch's meta device, so exactly and on any machine; a device's own buffers
(cuDNN's) are not in it. With --device cuda, or --time on a CPU, also one step (forward and backward) and on a GPU its peak.

timm's is timm's DenseNet with ``memory_efficient=True`` for the ImageNet networks; for CIFAR's, which timm's class cannot
build, our network with timm's way: torch's checkpoint around concatenation, BN, ReLU and first convolution of each layer.
"""

from functools import partial
from pathlib import Path
from types import MethodType

import click
import timm
import torch
import torch.nn.functional as F
from timm.models.densenet import DenseNet as TimmDenseNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from densefeat.bench import Report, benchmark_options, rate_rows, time_rounds
from densefeat.nets import VARIANTS, DenseLayer

PREFIX = "densefeat_"
NETWORKS = ("densenet40_k12", "densenet100_k12", "densenet_bc100_k12", "densenet_bc190_k40", "densenet_bc250_k24",
            "densenet121", "densenet169", "densenet201", "densenet264")  # fmt: skip
WAYS = ("plain", "timm", "memory_efficient")
HELD = "network=network | way=way | held, MB/image=megabytes:.1f | to plain=share:.2f"
STEPS = "way=arm | step, s=seconds:.3f | times as fast as plain (range)=ratio | peak, MB=peak:,.0f"


def build(network: str, way: str, device: str) -> nn.Module:
    structure = VARIANTS[PREFIX + network][1]
    if way != "timm":
        model = timm.create_model(PREFIX + network, memory_efficient=way == "memory_efficient", device=device)
    elif "stem_type" not in structure:
        model = TimmDenseNet(**structure, memory_efficient=True, device=device)
    else:
        model = timm.create_model(PREFIX + network, device=device)
        for layer in model.modules():
            if isinstance(layer, DenseLayer):
                layer.forward = MethodType(checkpointed_forward, layer)
    return model.train()


def checkpointed_forward(layer: DenseLayer, features: list[torch.Tensor], _: list[torch.Tensor]) -> torch.Tensor:
    x = checkpoint(lambda *xs: layer.conv1(layer.act1(layer.norm1(torch.cat(xs, 1)))), *features, use_reentrant=False)
    return layer.conv2(layer.act2(layer.norm2(x)))


def make_images(network: str, count: int, device: str) -> torch.Tensor:
    return torch.randn(count, *timm.get_pretrained_cfg(PREFIX + network).input_size, device=device)


def held_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """The bytes of all tensors that autograd keeps after a forward pass, each storage once."""
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
    one, two = (held_bytes(model, make_images(network, count, "meta")) for count in (1, 2))
    return two - one


def step(model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()


def peak_bytes(model: nn.Module, x: torch.Tensor) -> int:
    model.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(model, x)
    return torch.cuda.max_memory_allocated() - before


@click.command()
@click.option("--device", default="cpu", show_default=True, help="Where steps are timed.")
@click.option("--networks", default=",".join(NETWORKS), show_default=True)
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.  [default: 64 on a GPU, else 4]")
@click.option("--time", "timed", is_flag=True, help="Time steps on a CPU too.")
@benchmark_options(rounds=5)
def main(device: str, networks: str, batch_size: int | None, timed: bool, rounds: int, file: Path | None) -> None:
    """Measure and print."""
    cuda = torch.device(device).type == "cuda"
    count = batch_size or (64 if cuda else 4)
    report = Report(f"memory of training, float32; steps of {count} images", file, device)
    rows = []
    for network in networks.split(","):
        held = {way: held_per_image(network, way) for way in WAYS}
        rows += [
            {"network": network, "way": way, "megabytes": held[way] / 1e6, "share": held[way] / held["plain"]} for way in WAYS
        ]
    report.add("held for the backward pass", rows, HELD)
    for network in networks.split(",") if timed or cuda else ():
        models, x = {way: build(network, way, device) for way in WAYS}, make_images(network, count, device)
        steps = {way: partial(step, model, x) for way, model in models.items()}
        times = rate_rows(time_rounds(steps, rounds, device), "plain", count)
        for row in times:
            row["peak"] = peak_bytes(models[row["arm"]], x) / 1e6 if cuda else None
        report.add(network, times, STEPS)


if __name__ == "__main__":
    main()
