"""What each stage of an extraction does on this machine, and what ten thousand, a million and a billion images then take.

    python benchmarks/scale.py --images photos/ --model densefeat_densenet121

Rates are medians over rounds, of files in the page cache: what disks and networks add is not in them. Weights are random, but
for the bundled network: that changes no rate. The projection is arithmetic on the rates: on the CPU decoding and network take
turns on the same cores; beside an accelerator decoding hides behind the network, or the network behind it; writing comes on
top of both, and listing before them. "machine-hours" are hours on one machine: processes share no more than the list of parts,
so that ten machines take a tenth. An accelerator that is not here is a number: --network-rate.
"""

import io
import json
import math
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
from extract import BUNDLED, calibrated, chosen_photographs, sample_photographs
from rich.console import Console
from rich.table import Table

import densefeat
from densefeat.base import atomic_file
from densefeat.extraction.forward import fitting_batch_size, run_network
from densefeat.extraction.pipeline import Batch, Decoding, decoded_batches, usable_cores
from densefeat.extraction.settings import PART_BYTES, PART_ROWS
from densefeat.images import ImageItem, open_source
from densefeat.store import DTYPES, EmbeddingWriter, embedding_schema

SIZES = (10**4, 10**6, 10**9)
WEEK = 7 * 24
WAY = "torchvision"  # of decoding, in a job with its defaults


@dataclass(frozen=True)
class Stored:
    """Rows of some blocks in a part: bytes as vectors and in the file, rows written a second, rows of a part by default."""

    vector_bytes: int
    file_bytes: float
    rows_per_second: float
    part_rows: int


@dataclass(frozen=True)
class Rates:
    """Images a second, unless it says otherwise. ``decode``: of one thread, by decoder; ``decode_all``: of all threads.

    ``stored``: by blocks and dtype. ``key_bytes``: of a tar's member, held in memory. ``file_bytes``: mean of the input.
    """

    cores: int
    overlaps: bool
    list_files: float
    index_tars: float
    key_bytes: float
    file_bytes: float
    decode: dict[str, float]
    decode_all: float
    batch_size: int
    network: float
    stored: dict[str, Stored]


def median_rate(count: int, work: Callable[[], object], rounds: int) -> float:
    """``count`` a second, after one round to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return count / statistics.median(seconds[1:])


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def list_files(folder: Path, count: int, rounds: int) -> float:
    """Empty files, a hundred in a folder, listed, sorted and hashed as a job does it."""
    for start in range(0, count, 100):
        (below := folder / f"class_{start:08}").mkdir(parents=True)
        for i in range(start, min(start + 100, count)):
            (below / f"image_{i:08}.jpg").touch()
    return median_rate(count, lambda: open_source(folder).fingerprint(), rounds)


def index_tars(path: Path, count: int, rounds: int) -> tuple[float, float]:
    """Members of half a kilobyte: members a second, and what the index of one takes in memory."""
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            member = tarfile.TarInfo(f"class_{i // 100:08}/image_{i:08}.jpg")
            member.size = 512
            tar.addfile(member, io.BytesIO(bytes(512)))
    rate = median_rate(count, lambda: open_source(path).fingerprint(), rounds)
    source: Any = open_source(path)
    held = sum(part.nbytes for part in (source.names, source.tars, source.offsets, source.sizes))
    return rate, held / count


def decode_rates(items: list[ImageItem], geometry: Callable, cores: int, rounds: int) -> tuple[dict[str, float], float]:
    """Read, decoded, resized and cropped: by one thread with each decoder, and by one thread a core."""

    def alone(decoder: str) -> float:
        decoding = Decoding(geometry, decoder)
        return median_rate(len(items), lambda: [decoding(item) for item in items], rounds)

    with one_thread():
        by_decoder = {decoder: alone(decoder) for decoder in ("pillow", WAY)}
    with ThreadPoolExecutor(cores) as pool:

        def together() -> list[Batch]:
            return list(decoded_batches(iter(items), 32, Decoding(geometry, WAY), pool, 0))

        return by_decoder, median_rate(len(items), together, rounds)


def through_network(
    extractor: densefeat.FeatureExtractor, pixels: torch.Tensor, batch_size: int, rounds: int
) -> tuple[float, dict[str, np.ndarray]]:
    """Decoded batches in memory to features in memory, as a job does it: images a second, and the features."""
    passes = 1 if extractor.device.type == "cpu" else 8  # at least so many batches, of which each overlaps the next
    whole = pixels.repeat(-(-passes * batch_size // len(pixels)), 1, 1, 1) if passes > 1 else pixels
    batches = [Batch(len(part), pixels=part) for part in whole.split(batch_size)]
    parts: list[dict[str, np.ndarray]] = []

    def work() -> None:
        parts[:] = [features for _, features in run_network(batches, extractor, "float32")]

    rate = median_rate(len(whole), work, rounds)
    return rate, {name: np.concatenate([part[name] for part in parts])[: len(pixels)] for name in parts[0]}


def stored(features: dict[str, np.ndarray], dtype: str, folder: Path, rounds: int) -> Stored:
    """A whole part, synced. Each of its values is that of some image's feature, off by some percent, so that no two agree."""
    shapes = {name: values.shape[1:] for name, values in features.items()}
    row_bytes = sum(math.prod(shape) for shape in shapes.values()) * np.dtype(dtype).itemsize
    rows = max(1, min(PART_ROWS, PART_BYTES // row_bytes))
    generator = np.random.default_rng(0)
    part = {}
    for name, values in features.items():
        flat = values.reshape(len(values), -1)
        drawn = flat[generator.integers(len(flat), size=(rows, flat.shape[1])), np.arange(flat.shape[1])]
        noise = generator.standard_normal(drawn.shape, np.float32)
        part[name] = (drawn * (1 + 0.05 * noise)).astype(dtype).reshape(rows, *shapes[name])
    schema = embedding_schema(shapes, {}, dtype)
    file = folder / f"{dtype}-{len(features)}.parquet"

    def write() -> None:
        with atomic_file(file) as beside, EmbeddingWriter(beside, schema) as writer:
            for start in range(0, rows, 32):
                batch = {name: values[start : start + 32] for name, values in part.items()}
                count = min(32, rows - start)
                keys = [f"class_{i // 100:08}/image_{i:08}.jpg" for i in range(start, start + count)]
                writer.append({"path": keys, "width": [500] * count, "height": [375] * count}, batch)

    rate = median_rate(rows, write, rounds)
    return Stored(row_bytes, file.stat().st_size / rows, rate, rows)


def measured(paths: list[Path], temporary: Path, made: dict[str, Any], listed: int, rounds: int) -> Rates:
    """``made``: the extractor's arguments."""
    extractor = densefeat.FeatureExtractor(**made)
    cores = usable_cores()
    source = open_source(paths[0].parent)
    items = list(source.items(0, len(paths)))
    geometry = extractor.preprocessing.geometry()
    decode, decode_all = decode_rates(items, geometry, cores, rounds)
    found = [decoded for decoded in map(Decoding(geometry, WAY), items) if hasattr(decoded, "pixels")]
    if not found:
        raise click.ClickException("none of the images can be decoded")
    pixels = torch.stack([decoded.pixels for decoded in found])
    batch_size = fitting_batch_size(extractor)
    network, features = through_network(extractor, pixels, batch_size, rounds)
    last = list(features)[-1]
    rate, key_bytes = index_tars(temporary / "members.tar", listed, rounds)
    return Rates(
        cores=cores,
        overlaps=extractor.device.type != "cpu",
        list_files=list_files(temporary / "listed", listed, rounds),
        index_tars=rate,
        key_bytes=key_bytes,
        file_bytes=statistics.mean(path.stat().st_size for path in paths),
        decode=decode,
        decode_all=decode_all,
        batch_size=batch_size,
        network=network,
        stored={
            f"{blocks}, {dtype}": stored(chosen, dtype, temporary, rounds)
            for blocks, chosen in (("all blocks", features), ("last block", {last: features[last]}))
            for dtype in DTYPES
        },
    )


@dataclass(frozen=True)
class Machine:
    """Seconds an image by stage on a kind of machine; ``overlaps``: decoding beside the network, not in turns with it."""

    name: str
    decode: float
    network: float
    write: float
    overlaps: bool
    price: float

    @property
    def seconds(self) -> float:
        both = max(self.decode, self.network) if self.overlaps else self.decode + self.network
        return both + self.write

    @property
    def bottleneck(self) -> str:
        stages = {"network": self.network, "decode": self.decode, "write": self.write}
        return max(stages, key=lambda stage: stages[stage])


def machines(rates: Rates, device: str, assumed: dict[str, float]) -> list[Machine]:
    """This one; its cores beside the assumed accelerator; and the accelerator with as many cores as it needs."""
    write = 1 / rates.stored["all blocks, float32"].rows_per_second
    decode, fed, price = 1 / rates.decode_all, 1 / assumed["network_rate"], assumed["accelerator_price"]
    enough = cores_needed(rates, assumed["network_rate"])
    return [
        Machine(
            f"this one ({device}, {rates.cores} cores)",
            decode,
            1 / rates.network,
            write,
            rates.overlaps,
            assumed["price_per_hour"],
        ),
        Machine(f"accelerator, {rates.cores} cores", decode, fed, write, True, price),
        Machine(f"accelerator, {enough} cores", min(decode, fed), fed, write, True, price),
    ]


def cores_needed(rates: Rates, network: float) -> int:
    """To decode as fast as the network takes it."""
    return math.ceil(network / rates.decode_all * rates.cores)


def projection(rates: Rates, kinds: list[Machine], storage_price: float) -> list[dict[str, Any]]:
    """By number of images: time and cost by machine, storage and its monthly cost by what is stored."""
    results = []
    for images in SIZES:
        listing = images / rates.index_tars / 3600
        times = []
        for kind in kinds:
            hours = images * kind.seconds / 3600 + listing
            told = {"machine": kind.name, "machine_hours": hours, "bottleneck": kind.bottleneck}
            times.append(told | {"machines_for_a_week": math.ceil(hours / WEEK), "cost": hours * kind.price})
        storage = {
            name: {
                "parts": -(-images // kept.part_rows),
                "gigabytes": images * kept.file_bytes / 1e9,
                "cost_a_month": images * kept.file_bytes / 1e12 * storage_price,
            }
            for name, kept in rates.stored.items()
        }
        results.append(
            {
                "images": images,
                "input_gigabytes": images * rates.file_bytes / 1e9,
                "listing_hours": listing,
                "keys_gigabytes": images * rates.key_bytes / 1e9,
                "machines": times,
                "storage": storage,
            }
        )
    return results


def print_rates(rates: Rates) -> None:
    table = Table("stage", "rate", "", box=None, pad_edge=False)
    table.add_row("list a folder", f"{rates.list_files:,.0f} images/s", "in the file system's cache")
    table.add_row("index tars", f"{rates.index_tars:,.0f} members/s", f"{rates.key_bytes:.0f} bytes of memory each")
    for decoder, rate in rates.decode.items():
        mb = f"{rate * rates.file_bytes / 1e6:.0f} MB/s of files"
        table.add_row(f"decode, {decoder}", f"{rate:,.1f} images/s", f"one core; {mb}")
    table.add_row(f"decode, {WAY}", f"{rates.decode_all:,.1f} images/s", f"{rates.cores} threads on {rates.cores} cores")
    table.add_row("network", f"{rates.network:,.1f} images/s", f"all of the device; batch {rates.batch_size}")
    for name, kept in rates.stored.items():
        rate = f"{kept.rows_per_second:,.0f} rows/s"
        sizes = f"{kept.rows_per_second * kept.vector_bytes / 1e6:,.0f} MB/s; a row {kept.vector_bytes:,} bytes"
        table.add_row(f"write, {name}", rate, f"{sizes}, {kept.file_bytes:,.0f} in the file")
    Console(width=120).print(table)


def print_needs(rates: Rates, network: float) -> None:
    kept = rates.stored["all blocks, float32"]
    print(f"\nto keep an accelerator of {network:,.0f} images/s busy:")
    print(f"  {cores_needed(rates, network)} cores like these decode for it")
    print(f"  {network * rates.file_bytes / 1e6:,.0f} MB/s of files come in, {rates.file_bytes / 1e3:,.0f} kB each")
    print(f"  {network * kept.file_bytes / 1e6:,.0f} MB/s of vectors go out, writing which takes another")
    print(f"  {100 * network / kept.rows_per_second:.0f} % of the network's time on one core (all blocks, float32)\n")


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def print_projection(results: list[dict[str, Any]]) -> None:
    inputs = Table("images", "files, GB", "listing tars, hours", "keys in memory, GB", box=None, pad_edge=False)
    times = Table("images", "machine", "machine-hours", "machines for a week", "cost", "bottleneck", box=None, pad_edge=False)
    storage = Table("images", "stored", "parts", "GB", "cost a month", box=None, pad_edge=False)
    for result in results:
        images = f"{result['images']:,}"
        inputs.add_row(images, *(short(result[name]) for name in ("input_gigabytes", "listing_hours", "keys_gigabytes")))
        for told in result["machines"]:
            weeks, bottleneck = f"{told['machines_for_a_week']:,}", told["bottleneck"]
            times.add_row(images, told["machine"], short(told["machine_hours"]), weeks, short(told["cost"]), bottleneck)
        for name, kept in result["storage"].items():
            storage.add_row(images, name, f"{kept['parts']:,}", short(kept["gigabytes"]), short(kept["cost_a_month"]))
    for table in (inputs, times, storage):
        Console(width=120).print(table, "")


@click.command()
@click.option(
    "--images", "folder", type=click.Path(exists=True, path_type=Path), help="Folder; without, scikit-learn's photographs."
)
@click.option("--model", default="densefeat_densenet121", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--count", default=96, show_default=True, help="Photographs a round.")
@click.option("--listed", default=20_000, show_default=True, help="Files and members to list.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--network-rate", default=2000.0, show_default=True, help="Images/s of an accelerator: an assumption.")
@click.option("--price-per-hour", default=0.1, show_default=True, help="Of this machine, in any currency.")
@click.option("--accelerator-price", default=2.0, show_default=True, help="An hour of a machine with the accelerator.")
@click.option("--storage-price", default=20.0, show_default=True, help="A terabyte and month.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(
    folder: Path | None,
    model: str,
    device: str,
    precision: str,
    count: int,
    listed: int,
    rounds: int,
    form: str,
    **assumed: float,
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        if folder is None:
            folder = temporary / "photos"
            sample_photographs(folder, count)
        paths = chosen_photographs(folder, count, temporary / "chosen")
        weights = None
        if model != BUNDLED:
            torch.manual_seed(0)
            weights = temporary / "random.pt"
            torch.save(calibrated(timm.create_model(model)).state_dict(), weights)
        made = {"model": model, "weights": weights, "device": device, "precision": precision}
        rates = measured(paths, temporary, made, listed, rounds)
    results = projection(rates, machines(rates, device, assumed), assumed["storage_price"])
    if form == "json":
        given = {"model": model, "device": device, "precision": precision, "images": len(paths), "torch": torch.__version__}
        told = {"given": given, "assumed": assumed, "rates": asdict(rates)}
        told["cores_needed"] = cores_needed(rates, assumed["network_rate"])
        click.echo(json.dumps({**told, "projection": results}, indent=1))
        return
    print(f"{model}, {precision}, {device}, {len(paths)} photographs; {platform.machine()}, torch {torch.__version__}")
    print_rates(rates)
    print_needs(rates, assumed["network_rate"])
    print_projection(results)


if __name__ == "__main__":
    main()
