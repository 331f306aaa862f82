"""From JPEG files to a store: how much `densefeat extract` reaches of what decode and network allow, and what holds it up.

    python benchmarks/pipeline.py --images photos/
    python benchmarks/pipeline.py --images photos/ --device cuda --precision bf16 --batch-size 256 --count 8192

"decode" and "network" are measured alone: reading, decoding and resizing by the job's own threads, and the features of
prepared batches. On a CPU they share the cores, so that a job can reach 1 / (1 / decode + 1 / network); on a GPU they overlap,
and it can reach the slower of the two. "job" is a job of twice the images less a job of once, which leaves out what starting
costs. On a GPU "nvJPEG" is torchvision's decoding there, without resizing: what feeding it from there could reach at most.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import timm
import torch
from rich.console import Console
from rich.table import Table
from torchvision.io import ImageReadMode, decode_jpeg

import densefeat
from densefeat.bench.networks import image_files
from densefeat.extraction.pipeline import Decoding, decoded_batches, usable_cores
from densefeat.images import open_source

WINDOW = 64  # JPEG files decoded on the GPU at a time


def copies(folder: Path, count: int, into: Path) -> None:
    """``count`` files: those below ``folder``, as often as it takes."""
    found = image_files(folder)
    into.mkdir()
    for i in range(count):
        path = found[i % len(found)]
        shutil.copyfile(path, into / f"{i:06}{path.suffix}")


def seconds(function: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def decode(folder: Path, extractor: densefeat.FeatureExtractor, batch_size: int, ahead: int) -> None:
    decoding = Decoding(extractor.preprocessing.geometry(), extractor.decoder)
    source = open_source(folder)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in decoded_batches(source.items(0, source.length), batch_size, decoding, pool, ahead):
            pass


def network(extractor: densefeat.FeatureExtractor, batch: torch.Tensor, count: int) -> None:
    for _ in range(count // len(batch)):
        extractor.forward(batch)


def decode_on_gpu(folder: Path, device: torch.device) -> None:
    files = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in sorted(folder.iterdir())]
    for start in range(0, len(files), WINDOW):
        decode_jpeg(files[start : start + WINDOW], ImageReadMode.RGB, device=device)


def rates_of_a_round(
    once: Path, twice: Path, extractor: densefeat.FeatureExtractor, batch: torch.Tensor, count: int
) -> dict[str, float]:
    """Images a second of each part alone, and of the job."""
    device, cuda = extractor.device, extractor.device.type == "cuda"

    def job(images: Path) -> None:
        with tempfile.TemporaryDirectory() as out:
            options = {"precision": extractor.precision, "backend": extractor.backend, "batch_size": len(batch)}
            densefeat.extract(images, Path(out, "store"), extractor.model, device=str(device), **options)

    rates = {
        "decode": count / seconds(lambda: decode(once, extractor, len(batch), 3 if cuda else 0), device),
        "network": count // len(batch) * len(batch) / seconds(lambda: network(extractor, batch, count), device),
        "job": count / (seconds(lambda: job(twice), device) - seconds(lambda: job(once), device)),
    }
    slower = min(rates["decode"], rates["network"])
    rates["allowed"] = slower if cuda else 1 / (1 / rates["decode"] + 1 / rates["network"])
    if cuda and all(path.suffix.lower() in (".jpg", ".jpeg") for path in once.iterdir()):
        rates["nvJPEG"] = count / seconds(lambda: decode_on_gpu(once, device), device)
    return rates


def print_rates(rounds: list[dict[str, float]]) -> None:
    table = Table("part", "images/s (median)", "range", box=None, pad_edge=False)
    for name in rounds[0]:
        values = [rates[name] for rates in rounds]
        table.add_row(name, f"{statistics.median(values):.1f}", f"{min(values):.1f} to {max(values):.1f}")
    Console().print(table)
    reached = [100 * rates["job"] / rates["allowed"] for rates in rounds]
    print(f"the job reaches {statistics.median(reached):.0f} % of what is allowed ({min(reached):.0f} to {max(reached):.0f})")
    decode_rate, network_rate = (statistics.median(rates[name] for rates in rounds) for name in ("decode", "network"))
    slower, share = ("decode", network_rate) if decode_rate < network_rate else ("the network", decode_rate)
    print(f"the bottleneck is {slower}: {share / (decode_rate + network_rate):.0%} of their time together")


@click.command()
@click.option("--images", "folder", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of photographs.")
@click.option("--model", default="densefeat_densenet121", show_default=True, help="With random weights.")
@click.option("--count", default=256, show_default=True, help="Images of the smaller job.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--backend", default="auto", show_default=True)
def main(folder: Path, model: str, count: int, batch_size: int, rounds: int, device: str, precision: str, backend: str) -> None:
    """Measure and print."""
    torch.manual_seed(0)
    net = timm.create_model(model)
    extractor = densefeat.FeatureExtractor(net, device=device, precision=precision, backend=backend)
    size = extractor.preprocessing.size
    batch = torch.randn(min(batch_size, count), 3, size, size, device=device)
    with tempfile.TemporaryDirectory() as temporary:
        once, twice = Path(temporary, "once"), Path(temporary, "twice")
        copies(folder, count, once)
        copies(folder, 2 * count, twice)
        rates_of_a_round(once, twice, extractor, batch, count)  # to warm up
        measured = [rates_of_a_round(once, twice, extractor, batch, count) for _ in range(rounds)]
    print(f"{model} by {extractor.backend}, {precision}, {count} images of {size}×{size}, batch {len(batch)},")
    print(f"{device}, {usable_cores()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print_rates(measured)


if __name__ == "__main__":
    main()
