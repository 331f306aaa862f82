"""What each stage of an extraction does on this machine, and what ten thousand, a million and a billion images then take.

    python benchmarks/scale.py --images photos/

Rates are medians over rounds, of files in the page cache: disks and networks are not in them. Weights are random, which changes
no rate. The projection is arithmetic on the rates: on the CPU decoding and the network take turns on the same cores; beside an
accelerator the slower of the two hides the other; writing is added, and listing comes before. "machine-hours" are hours
on one machine: processes share only the list of parts, so ten take a tenth. An accelerator is a number: --network-rate.
"""

import io
import math
import shutil
import statistics
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import densefeat
from densefeat.base import atomic_file
from densefeat.bench import Report, benchmark_options, calibrated_network, list_images, time_rounds
from densefeat.extraction.decoding import Decoding, decode_batches, usable_cores
from densefeat.images import open_source
from densefeat.store import DTYPES, PART_ROWS, EmbeddingWriter, embedding_schema

SIZES = (10**4, 10**6, 10**9)
WEEK = 7 * 24
Row = dict[str, Any]


def measure_rate(count: int, work: Callable[[], object], rounds: int) -> float:
    """``count`` a second."""
    return count / statistics.median(time_rounds({"work": work}, rounds)["work"])


def measure_listing(folder: Path, count: int, rounds: int) -> list[Row]:
    """Empty files, a hundred in a folder, and tar members of half a kilobyte, listed, sorted and hashed as a job does it."""
    for i in range(count):
        (folder / "files" / f"class_{i // 100:08}").mkdir(parents=True, exist_ok=True)
        (folder / "files" / f"class_{i // 100:08}" / f"image_{i:08}.jpg").touch()
    with tarfile.open(folder / "members.tar", "w") as tar:
        for i in range(count):
            member = tarfile.TarInfo(f"class_{i // 100:08}/image_{i:08}.jpg")
            member.size = 512
            tar.addfile(member, io.BytesIO(bytes(512)))
    key_bytes = open_source(folder / "members.tar").keys().nbytes / count
    return [
        {"stage": "list a folder", "rate": measure_rate(count, lambda: open_source(folder / "files").fingerprint(), rounds)},
        {"stage": "index tars", "rate": measure_rate(count, lambda: open_source(folder / "members.tar").fingerprint(), rounds),
         "detail": f"{key_bytes:.0f} bytes of keys each", "key_bytes": key_bytes},
    ]  # fmt: skip


def measure_decoding(paths: list[Path], geometry: Callable[..., Any], rounds: int) -> list[Row]:
    """Read, decoded, resized and cropped, by one thread with each decoder and by one thread a core."""
    items, cores, rows = list(open_source(paths[0].parent).items(0, len(paths))), usable_cores(), []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for decoder in ("pillow", "torchvision"):
        decoding = Decoding(geometry, decoder)
        rate = measure_rate(len(items), lambda decoding=decoding: [decoding(item) for item in items], rounds)  # type: ignore[misc]
        rows.append({"stage": f"decode, {decoder}", "rate": rate, "detail": "one core"})
    torch.set_num_threads(before)
    with ThreadPoolExecutor(cores) as pool:
        decode = lambda: list(decode_batches(iter(items), 32, decoding, pool, 0))  # noqa: E731
        rows.append({"stage": "decode", "rate": measure_rate(len(items), decode, rounds), "detail": f"{cores} cores"})
    return rows


def measure_writing(features: dict[str, np.ndarray], dtype: str, folder: Path, rounds: int) -> Row:
    """A whole part, synced. Each value is that of some image's feature, off by some per cent, so that no two are equal."""
    generator, part = np.random.default_rng(0), {}
    for name, values in features.items():
        drawn = values[generator.integers(len(values), size=(PART_ROWS, values.shape[1])), np.arange(values.shape[1])]
        part[name] = (drawn * (1 + 0.05 * generator.standard_normal(drawn.shape, np.float32))).astype(dtype)
    schema = embedding_schema({name: values.shape[1:] for name, values in part.items()}, {}, dtype)
    file = folder / f"{dtype}-{len(features)}.parquet"

    def write() -> None:
        with atomic_file(file) as temporary, EmbeddingWriter(temporary, schema) as writer:
            for start in range(0, PART_ROWS, 32):
                keys = [f"class_{i // 100:08}/image_{i:08}.jpg" for i in range(start, start + 32)]
                batch = {name: values[start : start + 32] for name, values in part.items()}
                writer.append({"path": keys, "width": [500] * 32, "height": [375] * 32}, batch)

    rate = measure_rate(PART_ROWS, write, rounds)
    vector, stored = sum(values[0].nbytes for values in part.values()), file.stat().st_size / PART_ROWS
    stage = f"write, {'all blocks' if len(features) > 1 else 'last block'}, {dtype}"
    return {"stage": stage, "rate": rate, "row_bytes": stored, "detail": f"{vector:,} bytes a row, {stored:,.0f} in the file"}


def project(rates: dict[str, Row], file_bytes: float, cores: int, overlaps: bool, assumed: dict[str, float]) -> list[Row]:
    """Time and cost by number of images and kind of machine: this one, its cores beside an accelerator, and enough cores."""
    decode, network = 1 / rates["decode"]["rate"], 1 / rates["network"]["rate"]
    write, fed = 1 / rates["write, all blocks, float32"]["rate"], 1 / assumed["network_rate"]
    enough = math.ceil(cores * decode / fed)
    kinds = {
        f"this one, {cores} cores": (decode, network, overlaps, assumed["price_per_hour"]),
        f"accelerator, {cores} cores": (decode, fed, True, assumed["accelerator_price"]),
        f"accelerator, {enough} cores": (min(decode, fed), fed, True, assumed["accelerator_price"]),
    }
    rows = []
    for images in SIZES:
        listing = images / rates["index tars"]["rate"] / 3600
        for name, (decoding, forward, hidden, price) in kinds.items():
            seconds = (max(decoding, forward) if hidden else decoding + forward) + write
            stages = {"network": forward, "decode": decoding, "write": write}
            hours = images * seconds / 3600 + listing
            rows.append({
                "images": images, "machine": name, "hours": hours, "week": math.ceil(hours / WEEK), "cost": hours * price,
                "bottleneck": max(stages, key=lambda stage: stages[stage]), "input": images * file_bytes / 1e9,
            })  # fmt: skip
    return rows


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Photographs.")
@click.option("--model", default="densefeat_densenet121", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--backend", default="auto", show_default=True)
@click.option("--count", default=96, show_default=True, help="Photographs a round.")
@click.option("--listed", default=20_000, show_default=True, help="Files and members to list.")
@click.option("--network-rate", default=2000.0, show_default=True, help="Images/s of an accelerator: an assumption.")
@click.option("--price-per-hour", default=0.1, show_default=True, help="Of this machine, in any currency.")
@click.option("--accelerator-price", default=2.0, show_default=True, help="An hour of a machine with the accelerator.")
@click.option("--storage-price", default=20.0, show_default=True, help="A terabyte and month.")
@benchmark_options(rounds=3)
def main(
    images: Path, model: str, device: str, precision: str, backend: str, count: int, listed: int, rounds: int,
    file: Path | None, **assumed: float,
) -> None:  # fmt: skip
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        paths = [shutil.copyfile(path, folder / "photos" / f"{i:05}{path.suffix}")
                 for i, path in enumerate(list_images(images)[:count])]  # fmt: skip
        file_bytes = statistics.mean(path.stat().st_size for path in paths)
        network = calibrated_network(model)
        extractor = densefeat.FeatureExtractor(network, device=device, precision=precision, backend=backend)
        batch = extractor.prepare((paths * 32)[:32])
        rows = measure_listing(folder, listed, rounds)
        rows += measure_decoding(paths, extractor.preprocessing.geometry(), rounds)
        rate = measure_rate(8 * 32, lambda: [extractor.forward(batch)["block1"].cpu() for _ in range(8)], rounds)
        rows.append({"stage": "network", "rate": rate, "detail": "batch 32"})
        features = {block: values.numpy() for block, values in extractor(paths).items()}
        for chosen in (features, dict([list(features.items())[-1]])):
            rows += [measure_writing(chosen, dtype, folder, rounds) for dtype in DTYPES]
    rates = {row["stage"]: row for row in rows}
    stages = {stage: 1 / rates[stage]["rate"] for stage in ("decode", "network", "write, all blocks, float32")}
    for stage, seconds in stages.items():
        rates[stage]["share"] = 100 * seconds / sum(stages.values())
    title = f"{model} by {extractor.backend}, {precision}, {device}; {len(paths)} photographs of {file_bytes / 1e3:.0f} kB"
    report = Report(title, file, device)
    columns = {"stage": ("stage", "{}"), "rate": ("a second", "{:,.0f}"), "share": ("% of an image's time", "{:.1f}"),
               "detail": ("", "{}")}  # fmt: skip
    report.add("rates", rows, columns)
    projection = project(rates, file_bytes, usable_cores(), torch.device(device).type != "cpu", assumed)
    columns = {"images": ("images", "{:,}"), "machine": ("machine", "{}"), "hours": ("machine-hours", "{:,.3g}"),
               "week": ("machines for a week", "{:,}"), "cost": ("cost", "{:,.2f}"), "bottleneck": ("bottleneck", "{}"),
               "input": ("files, GB", "{:,.1f}")}  # fmt: skip
    report.add("time", projection, columns)
    storage = [
        {"images": size, "stored": stage.removeprefix("write, "), "parts": -(-size // PART_ROWS),
         "gb": size * row["row_bytes"] / 1e9, "cost": size * row["row_bytes"] / 1e12 * assumed["storage_price"],
         "keys": size * rates["index tars"]["key_bytes"] / 1e9}
        for size in SIZES for stage, row in rates.items() if "row_bytes" in row
    ]  # fmt: skip
    columns = {"images": ("images", "{:,}"), "stored": ("stored", "{}"), "parts": ("parts", "{:,}"), "gb": ("GB", "{:,.2f}"),
               "cost": ("cost a month", "{:,.2f}"), "keys": ("keys in memory, GB", "{:,.3g}")}  # fmt: skip
    report.add("storage", storage, columns)
    busy = assumed["network_rate"] / 1e6
    text = f"an accelerator of {assumed['network_rate']:,.0f} images/s reads {busy * file_bytes:,.0f} MB/s of files and"
    report.note(
        "megabytes in", busy * file_bytes, f"{text} writes {busy * rates['write, all blocks, float32']['row_bytes']:,.0f}"
    )


if __name__ == "__main__":
    main()
