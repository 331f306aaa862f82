"""From image files to features and to a store, beside what one would write with timm.

    python benchmarks/extract.py decode --images photos/
    python benchmarks/extract.py job --images photos/
    python benchmarks/extract.py job --images photos/ --device cuda --precision bf16 --batch-size 256 --count 8192
    python benchmarks/extract.py precision --images photos/

The networks other than the bundled one have random weights with statistics of noise. The arms take turns in every round.
"""

import io
import shutil
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

import densefeat
from densefeat.base import count_usable_cores, has_arithmetic
from densefeat.bench import Report, benchmark_options, calibrated_network, list_images, load_network, rate_rows, time_rounds
from densefeat.extraction.batches import Decoding, decode_batches
from densefeat.images import Preprocessing, decode_pixels, open_source

BUNDLED, LARGE = "densefeat_densenet_bc100_k12", "densefeat_densenet121"
DECODERS = ("pillow", "torchvision")
COLUMNS = "=arm | images/s=rate:,.1f | ratio to timm (range)=ratio"
COSINES = "network=network | block=block | cosine, mean=mean:.6f | least=least:.6f"

images_option = click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)


@click.group()
def main() -> None:
    """Measure one step and print."""


def write_weights(network: str, folder: Path) -> Path | None:
    """Random weights in a file; None for the bundled network, which has its own."""
    if network == BUNDLED:
        return None
    save_file(calibrated_network(network).state_dict(), folder / f"{network}.safetensors")
    return folder / f"{network}.safetensors"


def make_extractor(network: str, weights: Path | None, option: str, value: str) -> densefeat.FeatureExtractor:
    """An extractor with a value of one option; bf16 is emulated where the processor lacks it and extractors refuse it."""
    options: dict[str, Any] = {option: value}
    if option == "precision":
        options = {"backend": "auto" if has_arithmetic("bf16") else "buffer"}  # OpenVINO would compute in fp32
    extractor = densefeat.FeatureExtractor(network, weights=weights, device="cpu", **options)
    if option == "precision":
        extractor.network.precision = value
    return extractor


def cosine_rows(paths: list[Path], option: str, values: tuple[str, str]) -> list[dict[str, Any]]:
    """The cosines of each image's embeddings with two values of an extractor's option, by network and block."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network in (BUNDLED, LARGE):
            weights = write_weights(network, Path(folder))
            own, other = (make_extractor(network, weights, option, value)(paths) for value in values)
            for block, features in own.items():
                cosine = F.cosine_similarity(features.double(), other[block].double())
                rows.append({"network": network, "block": block, "mean": float(cosine.mean()), "least": float(cosine.min())})
    return rows


@main.command()
@images_option
@click.option("--count", default=64, show_default=True, help="JPEG files a round.")
@benchmark_options(rounds=5)
def decode(images: Path, count: int, rounds: int, file: Path | None) -> None:
    """JPEG files in memory to uint8 (3, 224, 224) in one thread: timm's transform on Pillow, and our two decoders.

    The decoder "pillow" equals timm's transform bit for bit (checked). Below: how far "torchvision" is from it.
    """
    torch.set_num_threads(1)
    paths = [path for path in list_images(images) if path.suffix.lower() in (".jpg", ".jpeg")][:count]
    files = [path.read_bytes() for path in paths]
    model = timm.create_model("densenet121")
    transform = create_transform(**resolve_model_data_config(model), normalize=False)
    geometry = Preprocessing.for_model(model).geometry()
    arms = {
        "timm on Pillow": lambda: [transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in files],
        "decoder pillow": lambda: [geometry(decode_pixels(data, "pillow")) for data in files],
        "decoder torchvision": lambda: [geometry(decode_pixels(data, "torchvision")) for data in files],
    }
    by_timm, by_pillow, by_torchvision = (torch.stack(work()).int() for work in arms.values())
    if not torch.equal(by_pillow, by_timm):
        raise click.ClickException(
            "decoder pillow differs from timm's transform: are there EXIF rotations, which timm ignores?"
        )
    report = Report(f"{len(files)} JPEG files, one thread", file)
    rows = rate_rows(time_rounds(arms, rounds), "timm on Pillow", len(files))
    report.add("decode and resize", rows, COLUMNS)
    difference = (by_torchvision - by_pillow).abs().float()
    text = f"pixels, torchvision to pillow: mean {difference.mean():.4f} of 255, largest {difference.max():.0f}"
    report.note("mean pixel difference", float(difference.mean()), text)
    report.add("embeddings, torchvision to pillow", cosine_rows(paths, "decoder", DECODERS), COSINES)


@main.command()
@images_option
@click.option("--model", default=LARGE, show_default=True)
@click.option("--count", default=256, show_default=True, help="Images of the smaller job.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--backend", default="auto", show_default=True)
@benchmark_options(rounds=3)
def job(
    images: Path, model: str, count: int, batch_size: int, device: str, precision: str, backend: str, rounds: int,
    file: Path | None,
) -> None:  # fmt: skip
    """How much `densefeat extract` reaches of what decoding and the network allow, and what limits it.

    "decode" and "network" are measured alone. On a CPU they share the cores, so that a job can reach
    1 / (1 / decode + 1 / network); on a GPU they overlap, and it can reach the slower one. "job" is a job of twice the images
    less a job of once, without the cost of starting. "timm loop" is timm's transform and forward_intermediates, channels_last.
    """
    cuda = torch.device(device).type == "cuda"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        once, twice = copy_images(images, count, folder / "once"), copy_images(images, 2 * count, folder / "twice")
        weights = write_weights(model, folder)
        extractor = densefeat.FeatureExtractor(model, weights=weights, device=device, precision=precision, backend=backend)
        timms = load_network(model, str(weights)).to(device, memory_format=torch.channels_last) if weights else extractor.model
        batch = extractor.prepare(list_images(once)[:batch_size])

        def decode_images() -> None:
            source, decoding = open_source(once), Decoding(extractor.preprocessing.geometry(), extractor.decoder)
            with ThreadPoolExecutor(count_usable_cores()) as pool:
                batches = decode_batches(source.items(0, source.length), batch_size, decoding, pool, 3 if cuda else 0)
                with closing(batches):
                    list(batches)

        def run_job(paths: Path) -> None:
            options: dict[str, Any] = {"device": device, "precision": precision, "backend": extractor.backend}
            densefeat.extract(paths, folder / "store", model, weights, batch_size=batch_size, overwrite=True, **options)

        arms = {
            "timm loop": lambda: run_timm(timms, extractor, list_images(once), batch_size),
            "decode": decode_images,
            "network": lambda: [extractor.forward(batch) for _ in range(count // len(batch))],
            "job once": lambda: run_job(once),
            "job twice": lambda: run_job(twice),
        }
        seconds = time_rounds(arms, rounds, device)
    seconds["job"] = [long - short for long, short in zip(seconds.pop("job twice"), seconds.pop("job once"), strict=True)]
    seconds["network"] = [each * count / (count // len(batch) * len(batch)) for each in seconds["network"]]
    parts = list(zip(seconds["decode"], seconds["network"], strict=True))
    seconds["allowed"] = [max(pair) if cuda else sum(pair) for pair in parts]
    report = Report(f"{model} by {extractor.backend}, {precision}, {count} images, batch {len(batch)}, {device}", file, device)
    report.add("images to features", rate_rows(seconds, "timm loop", count), COLUMNS)
    reached = statistics.median(100 * own / whole for own, whole in zip(seconds["allowed"], seconds["job"], strict=True))
    report.note("percent of allowed", reached, f"the job reaches {reached:.0f} % of what is allowed")
    share = 100 * statistics.median(network / (decoding + network) for decoding, network in parts)
    report.note("network's percent", share, f"the network takes {share:.0f} % of the two parts' time")


def copy_images(images: Path, count: int, folder: Path) -> Path:
    """Copy ``count`` files: those below ``images``, repeated as often as necessary."""
    files = list_images(images)
    folder.mkdir()
    for i in range(count):
        path = files[i % len(files)]
        shutil.copyfile(path, folder / f"{i:06}{path.suffix}")
    return folder


@torch.inference_mode()
def run_timm(model: Any, extractor: densefeat.FeatureExtractor, paths: list[Path], batch_size: int) -> None:
    transform = create_transform(**resolve_model_data_config(model))
    for start in range(0, len(paths), batch_size):
        x = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[start : start + batch_size]])
        x = x.to(extractor.device, memory_format=torch.channels_last)
        with torch.autocast(extractor.device.type, torch.bfloat16, enabled=extractor.precision == "bf16"):
            maps = model.forward_intermediates(x, intermediates_only=True)
        [each.float().mean((2, 3)).cpu() for each in maps[1:]]


@main.command()
@images_option
@click.option("--count", default=64, show_default=True, help="Photographs.")
@benchmark_options()
def precision(images: Path, count: int, file: Path | None) -> None:
    """How far the embeddings in bf16 are from those in fp32: tap norm, average-pooled, on the CPU."""
    paths = list_images(images)[:count]
    rows = cosine_rows(paths, "precision", ("fp32", "bf16"))
    Report(f"{len(paths)} photographs", file).add("bf16 to fp32", rows, COSINES)


if __name__ == "__main__":
    main()
