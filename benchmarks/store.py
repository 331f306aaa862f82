"""Reading and searching a store, time and memory, beside plain numpy over the same vectors.

    python benchmarks/store.py read
    python benchmarks/store.py search

Every call runs in a process of its own, after its imports and with the files in the page cache; the arms take turns within each
round. Memory is what the process's peak grows by, the arrays that are returned included.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import densefeat
from densefeat.bench import Report, benchmark_options, measure_rounds, rate_rows, read_peak, reset_peak, run_alone, time_call
from densefeat.search import find_duplicates, find_neighbours
from densefeat.store import EmbeddingWriter, embedding_schema

MIDDLE_ROWS, PIECE = 10_000, 8192
SIZE, THRESHOLD = 256, 0.9
COLUMNS = {"arm": ("", "{}"), "seconds": ("s (median)", "{:.4f}"), "megabytes": ("MB more", "{:,.0f}"),
           "ratio": ("times as fast as numpy (range)", "{}"), "found": ("found", "{:,}")}  # fmt: skip


@click.group()
def main() -> None:
    """Measure and print."""


def write_store(path: Path, rows: int, channels: list[int]) -> None:
    """One cluster for every hundred rows, at least 0 as pooled features are; nearly incompressible."""
    generator = np.random.default_rng(0)
    centres = [generator.standard_normal((max(1, rows // 100), size), np.float32) for size in channels]
    with EmbeddingWriter(path, embedding_schema({f"block{i}": (size,) for i, size in enumerate(channels, 1)}, {})) as writer:
        for start in range(0, rows, PIECE):
            n = min(PIECE, rows - start)
            clusters = generator.integers(0, len(centres[0]), n)
            vectors = [each[clusters] + 0.4 * generator.standard_normal((n, each.shape[1]), np.float32) for each in centres]
            columns = {"path": [f"folder/{i:08}.jpg" for i in range(start, start + n)], "width": [500] * n, "height": [375] * n}
            writer.append(columns, {f"block{i}": np.maximum(values, 0) for i, values in enumerate(vectors, 1)})


def middle(rows: int) -> slice:
    first = max(0, (rows - MIDDLE_ROWS) // 2)
    return slice(first, first + MIDDLE_ROWS)


def read_middle(store: Path) -> np.ndarray:
    opened = densefeat.open_store(store)
    rows = middle(len(opened))
    return opened.read("block1", rows.start, rows.stop)


def read_middle_mapped(array: Path) -> np.ndarray:
    mapped = np.load(array, mmap_mode="r")
    return np.array(mapped[middle(len(mapped))])


def read_block(store: Path) -> np.ndarray:
    return densefeat.open_store(store)["block1"]


def read_keys(store: Path) -> np.ndarray:
    return densefeat.open_store(store).keys


READINGS: dict[str, dict[str, Callable[[Path], Any]]] = {  # by step: the arms; numpy's read block1.npy beside the store
    "open": {"np.load, mapped": partial(np.load, mmap_mode="r"), "densefeat": densefeat.open_store},
    "one block": {"np.load": np.load, "densefeat": read_block},
    "10,000 rows in the middle": {"np.load, mapped": read_middle_mapped, "densefeat": read_middle},
    "all keys": {"densefeat": read_keys},
}


def numpy_nearest(store: Path) -> int:
    vectors = read_block(store)
    similarity = vectors @ vectors[5] / np.linalg.norm(vectors, axis=1)
    best = np.argpartition(-similarity, 10)[:10]
    return len(best[np.argsort(-similarity[best])])


def numpy_pairs(store: Path) -> int:
    """Compare a thousand rows with all, so that it fits into memory."""
    vectors = read_block(store)
    scaled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = 0
    for start in range(0, len(scaled), 1000):
        first, second = np.nonzero(scaled[start : start + 1000] @ scaled.T >= THRESHOLD)
        found += int((first + start < second).sum())
    return found


def nearest(store: Path) -> int:
    return len(find_neighbours(densefeat.open_store(store), keys=["folder/00000005.jpg"], k=10).rows[0])


def pairs(store: Path, engine: str) -> int:
    return len(find_duplicates(densefeat.open_store(store), THRESHOLD, engine=engine, max_pairs=10**8).pairs.first)


SEARCHES: dict[str, dict[str, Callable[[Path], Any]]] = {
    "ten nearest to one query": {"numpy": numpy_nearest, "densefeat": nearest},
    "near duplicates": {"numpy": numpy_pairs, "exact": partial(pairs, engine="exact"), "faiss": partial(pairs, engine="faiss")},
}


ARMS = READINGS | SEARCHES


def run_one(step: str, arm: str, path: Path) -> dict[str, Any]:
    """Seconds, megabytes, and of a search what it found; called in a process of its own."""
    results: list[Any] = []
    reset_peak()
    before = read_peak()
    seconds = time_call(lambda: results.append(ARMS[step][arm](path)))
    found = results[0] if isinstance(results[0], int) else None
    return {"seconds": seconds, "megabytes": (read_peak() - before) / 1e6, "found": found}


def compare_step(report: Report, step: str, rounds: int, store: Path) -> None:
    arms, array = list(ARMS[step]), store.with_name("block1.npy")
    works = {arm: partial(run_alone, run_one, step, arm, array if arm.startswith("np.") else store) for arm in arms}
    results = measure_rounds(works, rounds, warmups=0)
    rows = rate_rows({arm: [each["seconds"] for each in own] for arm, own in results.items()}, dict.fromkeys(arms, arms[0]))
    for row in rows:
        own = results[row["arm"]]
        row |= {"megabytes": float(np.median([each["megabytes"] for each in own])), "found": own[0]["found"]}
    report.add(step, rows, COLUMNS)


@main.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--channels", default="256,128", show_default=True, help="Of each block; the first is read.")
@benchmark_options(rounds=5)
def read(rows: int, channels: str, rounds: int, file: Path | None) -> None:
    """Open and read a store, beside a raw .npy file of the same vectors; --channels 256,512,1024,1024 has DenseNet-121's."""
    with tempfile.TemporaryDirectory() as folder:
        store, array = Path(folder, "store.parquet"), Path(folder, "block1.npy")
        write_store(store, rows, [int(count) for count in channels.split(",")])
        np.save(array, densefeat.open_store(store)["block1"])
        sizes = f"store {store.stat().st_size / 1e6:,.0f} MB, block1.npy {array.stat().st_size / 1e6:,.0f} MB"
        report = Report(f"{rows:,} rows of {channels} channels, float32: {sizes}", file)
        for step in READINGS:
            compare_step(report, step, rounds, store)


@main.command()
@click.option("--rows", default=1_000_000, show_default=True, help="For one query.")
@click.option("--pair-rows", default=50_000, show_default=True, help="For near duplicates.")
@benchmark_options(rounds=3)
def search(rows: int, pair_rows: int, rounds: int, file: Path | None) -> None:
    """Search a store; reading it counts, for numpy too. faiss: how many of the pairs that exact search finds."""
    report = Report(f"{SIZE} values a row, float32; one query among {rows:,} rows, near duplicates among {pair_rows:,}", file)
    with tempfile.TemporaryDirectory() as folder:
        for step, count in zip(SEARCHES, (rows, pair_rows), strict=True):
            store = Path(folder, f"{count}.parquet")
            write_store(store, count, [SIZE])
            compare_step(report, step, rounds, store)


if __name__ == "__main__":
    main()
