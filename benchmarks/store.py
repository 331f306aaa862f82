"""What it costs to read a store's vectors, beside np.load of the same array, and which part of it is whose.

    python benchmarks/store.py --data DATA
    MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=8589934592 python benchmarks/store.py --data DATA

DATA has cifar10-test.parquet, in the datasets layout. The rows are made of real features: those of the bundled network's last
block on images of CIFAR-10, each channel drawn from one of the images and off by some 5 %, channels repeated up to the width.
All files stay in the cache, and the arms take turns within each round. "decompress": zstd alone on the store's pages, in as
many threads as there are cores; no reader of these files can be faster. "pyarrow": its own threads, without our checksums. The
other Parquet files hold the same table with another compression. By the second command freed memory is kept, so that no arm
waits for the system to hand out pages.
"""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from densefeat import FeatureExtractor
from densefeat.base import count_usable_cores
from densefeat.bench import Report, benchmark_options, measure_rounds
from densefeat.store import DTYPES, EmbeddingWriter, make_embedding_schema, open_store

NAME, PIECE, GROUP, IMAGES = "block", 256, 8192, 256
OTHERS: dict[str, dict[str, object]] = {
    "lz4": {"compression": "lz4"},
    "no compression": {"compression": "none", "use_byte_stream_split": False},
}
COLUMNS = ("arm=arm | file, of .npy=size:.3f | written, s=written:.1f | read, s=wall:.3f | CPU, s=cpu:.3f"
           " | times np.load's (range)=ratio")  # fmt: skip
Arm = Callable[[], np.ndarray | None]


def draw_rows(data: Path, rows: int, width: int, dtype: str) -> np.ndarray:
    """Make rows like the features of other images of the same kind, ``(rows, width)``."""
    images = pq.read_table(data / "cifar10-test.parquet", columns=["image"]).slice(0, IMAGES)["image"].to_pylist()
    extractor = FeatureExtractor("densefeat_densenet_bc100_k12", device="cpu")
    features = extractor([Image.open(io.BytesIO(image["bytes"])) for image in images])["block3"].numpy()
    features = np.tile(features, (1, -(-width // features.shape[1])))[:, :width]
    generator, out = np.random.default_rng(0), np.empty((rows, width), dtype)
    for start in range(0, rows, GROUP):
        count = min(GROUP, rows - start)
        drawn = features[generator.integers(len(features), size=(count, width)), np.arange(width)]
        out[start : start + count] = drawn * (1 + 0.05 * generator.standard_normal(drawn.shape, np.float32))
    return out


def write_array(path: Path, rows: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would add .npy to the name
        np.save(file, rows)


def write_store(path: Path, rows: np.ndarray) -> None:
    schema = make_embedding_schema({NAME: rows.shape[1:]}, {}, str(rows.dtype))
    with EmbeddingWriter(path, schema) as writer:
        for start in range(0, len(rows), PIECE):
            batch = rows[start : start + PIECE]
            plain = {"path": [f"{start + i:08}.jpg" for i in range(len(batch))]}
            writer.append(plain | {side: [32] * len(batch) for side in ("width", "height")}, {NAME: batch})


def write_other(path: Path, rows: np.ndarray, **settings: object) -> None:
    """Write the vectors alone to Parquet, in row groups and columns as a store has them."""
    schema = pa.schema([make_embedding_schema({NAME: rows.shape[1:]}, {}, str(rows.dtype)).field(NAME)])
    split = [f"{NAME}.list.element"] if rows.dtype == np.float32 else False
    chosen: dict[str, object] = {"use_byte_stream_split": split, "use_dictionary": False, "write_statistics": False} | settings
    with pq.ParquetWriter(path, schema, **chosen) as writer:
        for start in range(0, len(rows), GROUP):
            flat = pa.array(rows[start : start + GROUP].reshape(-1))
            writer.write_table(pa.table([pa.FixedSizeListArray.from_arrays(flat, type=schema.field(0).type)], schema=schema))


def read_with_pyarrow(path: Path) -> None:
    pq.read_table(path, columns=[NAME], memory_map=True)


def split_pages(path: Path) -> list[tuple[bytes, int]]:
    """Compress a store's vectors again, a page of 1 MB at a time, as its pages are: the bytes, and how many they unpack to."""
    codec, pages = pa.Codec("zstd", 1), []
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            values = file.read_row_group(group, columns=[NAME]).column(0).combine_chunks().flatten().to_numpy()
            octets = values.view(np.uint8).reshape(len(values), -1)
            for start in range(0, len(octets), 2**20 // octets.shape[1]):
                page = octets[start : start + 2**20 // octets.shape[1]]
                data = (page.T if values.dtype == np.float32 else page).tobytes()
                pages.append((codec.compress(data, asbytes=True), len(data)))
    return pages


def decompress(pages: list[tuple[bytes, int]]) -> None:
    codec = pa.Codec("zstd")
    with ThreadPoolExecutor(count_usable_cores()) as pool:
        for _ in pool.map(lambda page: len(codec.decompress(*page)), pages, chunksize=16):
            pass


def read_single_rows(path: Path, numbers: np.ndarray) -> None:
    store = open_store(path)
    for number in numbers:
        store.read(NAME, int(number), int(number) + 1)


def time_work(work: Arm) -> tuple[float, float]:
    """Return the seconds of a call, by the clock and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(arms: dict[str, Arm], rounds: int, baseline: str, files: dict[str, dict[str, float]]) -> list[dict[str, object]]:
    """A row for each arm: its times, how many times those of ``baseline`` they are, and what is known of its file."""
    times = measure_rounds({name: partial(time_work, work) for name, work in arms.items()}, rounds, warmups=1)
    rows: list[dict[str, object]] = []
    for name, own in times.items():
        ratios = [mine[0] / base[0] for mine, base in zip(own, times[baseline], strict=True)]
        ratio = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        wall, cpu = (statistics.median(column) for column in zip(*own, strict=True))
        rows.append({"arm": name, "wall": wall, "cpu": cpu, "ratio": ratio, **files.get(name, {})})
    return rows


def write_files(folder: Path, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Write the array in each way; return size and seconds by arm."""
    writers: dict[str, Callable[[Path], object]] = {
        "np.load": partial(write_array, rows=rows),
        "open_store": partial(write_store, rows=rows),
        **{name: partial(write_other, rows=rows, **settings) for name, settings in OTHERS.items()},
    }
    files = {}
    for name, write in writers.items():
        began = time.perf_counter()
        write(folder / name)
        files[name] = {"written": time.perf_counter() - began, "size": os.path.getsize(folder / name) / rows.nbytes}
    return files


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--rows", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--width", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--singles", type=click.IntRange(1), default=20, show_default=True, help="Random rows, read one by one.")
@benchmark_options(rounds=7)
def main(data: Path, rows: int, width: int, singles: int, rounds: int, file: Path | None) -> None:
    """Measure and print."""
    report = Report(f"reading {rows:,} vectors of {width:,} numbers", file)
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as name:
            folder, array = Path(name), draw_rows(data, rows, width, dtype)
            files = write_files(folder, array)
            store, array_file = folder / "open_store", folder / "np.load"
            if not np.array_equal(open_store(store)[NAME], array):
                raise click.ClickException("the store's rows are not those that were written")
            del array
            arms: dict[str, Arm] = {
                "np.load": partial(np.load, array_file),
                "open_store": lambda store=store: open_store(store)[NAME],  # type: ignore[misc]
                "pyarrow": partial(read_with_pyarrow, store),
                "decompress": partial(decompress, split_pages(store)),
                **{other: partial(read_with_pyarrow, folder / other) for other in OTHERS},
            }
            report.add(dtype, compare(arms, rounds, "np.load", files), COLUMNS)
            numbers = np.random.default_rng(1).integers(rows, size=singles)
            random: dict[str, Arm] = {
                "np.load": lambda path=array_file, numbers=numbers: np.load(path)[numbers],  # type: ignore[misc]
                "open_store": partial(read_single_rows, store, numbers),
            }
            report.add(f"{dtype}, {singles} random rows", compare(random, rounds, "np.load", {}), COLUMNS)


if __name__ == "__main__":
    main()
