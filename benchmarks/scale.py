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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from threadpoolctl import threadpool_limits

import densefeat
from densefeat.base import atomic_file, count_usable_cores
from densefeat.bench import Report, benchmark_options, calibrated_network, list_images, time_rounds
from densefeat.extraction.batches import Decoding, decode_batches
from densefeat.images import open_source
from densefeat.store import DTYPES, PART_ROWS, EmbeddingWriter, make_embedding_schema

SIZES, WRITE = (10**4, 10**6, 10**9), "write, all blocks, float32"
RATES = "stage=stage | a second=rate:,.0f | % of an image's time=share:.1f | =detail"
TIME = ("images=images:, | machine=machine | machine-hours=hours:,.3g | cost=cost:,.2f | bottleneck=bottleneck"
        " | files, GB=input:,.1f")  # fmt: skip
STORAGE = "images=images:, | stored=stored | parts=parts:, | GB=gb:,.2f | cost a month=cost:,.2f | keys in memory, GB=keys:,.3g"


def make_files(folder: Path, count: int) -> tuple[Path, Path]:
    """Empty files, a hundred in a folder, and a tar with members of half a kilobyte."""
    names = [f"class_{i // 100:08}/image_{i:08}.jpg" for i in range(count)]
    with tarfile.open(folder / "members.tar", "w") as tar:
        for name in names:
            (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "files" / name).touch()
            member = tarfile.TarInfo(name)
            member.size = 512
            tar.addfile(member, io.BytesIO(bytes(512)))
    return folder / "files", folder / "members.tar"


def make_part(features: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The rows of a part: values of some image's features, off by some per cent, so that no two are equal."""
    generator, part = np.random.default_rng(0), {}
    for name, values in features.items():
        drawn = values[generator.integers(len(values), size=(PART_ROWS, values.shape[1])), np.arange(values.shape[1])]
        part[name] = (drawn * (1 + 0.05 * generator.standard_normal(drawn.shape, np.float32))).astype(dtype)
    return part


def write_part(part: dict[str, np.ndarray], dtype: str, file: Path) -> None:
    schema = make_embedding_schema({name: values.shape[1:] for name, values in part.items()}, {}, dtype)
    with atomic_file(file) as temporary, EmbeddingWriter(temporary, schema) as writer:
        for start in range(0, PART_ROWS, 32):
            keys = [f"class_{i // 100:08}/image_{i:08}.jpg" for i in range(start, start + 32)]
            batch = {name: values[start : start + 32] for name, values in part.items()}
            writer.append({"path": keys, "width": [500] * 32, "height": [375] * 32}, batch)


def measure_stages(
    paths: list[Path], extractor: densefeat.FeatureExtractor, listed: int, rounds: int, folder: Path
) -> list[Any]:
    """A row for each stage: its rate, and what it says of bytes."""
    rows: list[dict[str, Any]] = []

    def add(stage: str, count: int, work: Any, detail: str = "", **more: float) -> None:
        seconds = statistics.median(time_rounds({"work": work}, rounds)["work"])
        rows.append({"stage": stage, "rate": count / seconds, "detail": detail, **more})

    files, tar = make_files(folder, listed)
    add("list a folder", listed, lambda: open_source(files).fingerprint())
    key_bytes = open_source(tar).keys().nbytes / listed
    add(
        "index tars", listed, lambda: open_source(tar).fingerprint(), f"{key_bytes:.0f} bytes of keys each", key_bytes=key_bytes
    )
    items, cores = list(open_source(paths[0].parent).items(0, len(paths))), count_usable_cores()
    decoders = [Decoding(extractor.preprocessing.geometry(), name) for name in ("pillow", "torchvision")]
    with threadpool_limits(1):
        for decoding in decoders:
            add(
                f"decode, {decoding.decoder}",
                len(items),
                lambda decoding=decoding: [decoding(item) for item in items],
                "one core",
            )
    with ThreadPoolExecutor(cores) as pool:
        add("decode", len(items), lambda: list(decode_batches(iter(items), 32, decoders[1], pool, 0)), f"{cores} cores")
    file = folder / "part.parquet"
    batch = extractor.prepare((paths * 32)[:32])
    add("network", 8 * 32, lambda: [extractor.forward(batch)["block1"].cpu() for _ in range(8)], "batch 32")
    features = {block: values.numpy() for block, values in extractor(paths).items()}
    for what, blocks in (("all blocks", features), ("last block", dict([list(features.items())[-1]]))):
        for dtype in DTYPES:
            part = make_part(blocks, dtype)
            add(f"write, {what}, {dtype}", PART_ROWS, lambda part=part, dtype=dtype: write_part(part, dtype, file))
            vector, stored = sum(values[0].nbytes for values in part.values()), file.stat().st_size / PART_ROWS
            rows[-1] |= {"detail": f"{vector:,} bytes a row, {stored:,.0f} in the file", "row_bytes": stored}
    return rows


def project(rates: dict[str, Any], file_bytes: float, assumed: dict[str, float]) -> list[dict[str, Any]]:
    """Time and cost by number of images and kind of machine: this one, its cores beside an accelerator, and enough cores."""
    decode, network, write, index = (1 / rates[stage]["rate"] for stage in ("decode", "network", WRITE, "index tars"))
    fed, cores = 1 / assumed["network_rate"], count_usable_cores()
    kinds = {
        f"this one, {cores} cores": (decode, network, False, assumed["price_per_hour"]),
        f"accelerator, {cores} cores": (decode, fed, True, assumed["accelerator_price"]),
        f"accelerator, {math.ceil(cores * decode / fed)} cores": (min(decode, fed), fed, True, assumed["accelerator_price"]),
    }
    rows = []
    for images in SIZES:
        for name, (decoding, forward, hidden, price) in kinds.items():
            seconds = (max(decoding, forward) if hidden else decoding + forward) + write + index
            stages = {"network": forward, "decode": decoding, "write": write}
            bottleneck, hours = max(stages, key=lambda stage: stages[stage]), images * seconds / 3600
            machine = {"images": images, "machine": name, "bottleneck": bottleneck, "input": images * file_bytes / 1e9}
            rows.append(machine | {"hours": hours, "cost": hours * price})
    return rows


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Photographs.")
@click.option("--model", default="densefeat_densenet121", show_default=True)
@click.option("--backend", default="auto", show_default=True)
@click.option("--count", default=96, show_default=True, help="Photographs a round.")
@click.option("--listed", default=20_000, show_default=True, help="Files and members to list.")
@click.option("--network-rate", default=2000.0, show_default=True, help="Images/s of an accelerator: an assumption.")
@click.option("--price-per-hour", default=0.1, show_default=True, help="Of this machine, in any currency.")
@click.option("--accelerator-price", default=2.0, show_default=True, help="An hour of a machine with the accelerator.")
@click.option("--storage-price", default=20.0, show_default=True, help="A terabyte and month.")
@benchmark_options(rounds=3)
def main(
    images: Path, model: str, backend: str, count: int, listed: int, rounds: int, file: Path | None, **assumed: float
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        (photos := Path(name, "photos")).mkdir()
        paths = [shutil.copyfile(path, photos / f"{i:05}{path.suffix}") for i, path in enumerate(list_images(images)[:count])]
        file_bytes = statistics.mean(path.stat().st_size for path in paths)
        extractor = densefeat.FeatureExtractor(calibrated_network(model), device="cpu", backend=backend)
        rows = measure_stages(paths, extractor, listed, rounds, Path(name))
    rates = {row["stage"]: row for row in rows}
    stages = [rates[stage] for stage in ("decode", "network", WRITE)]
    for row in stages:
        row["share"] = 100 / row["rate"] / sum(1 / each["rate"] for each in stages)
    report = Report(f"{model} by {extractor.backend}; {len(paths)} photographs of {file_bytes / 1e3:.0f} kB", file)
    report.add("rates", rows, RATES)
    report.add("time", project(rates, file_bytes, assumed), TIME)
    storage = [
        {"images": size, "stored": row["stage"].removeprefix("write, "), "parts": -(-size // PART_ROWS),
         "gb": size * row["row_bytes"] / 1e9, "cost": size * row["row_bytes"] / 1e12 * assumed["storage_price"],
         "keys": size * rates["index tars"]["key_bytes"] / 1e9}
        for size in SIZES for row in rows if "row_bytes" in row
    ]  # fmt: skip
    report.add("storage", storage, STORAGE)
    read, written = (assumed["network_rate"] / 1e6 * each for each in (file_bytes, rates[WRITE]["row_bytes"]))
    text = (
        f"an accelerator of {assumed['network_rate']:,.0f} images/s reads {read:,.0f} MB/s of files and writes {written:,.0f}"
    )
    report.note("megabytes in", read, text)


if __name__ == "__main__":
    main()
