"""Seconds and peak memory of searches in a store, against what a user would write with numpy over the vectors in memory.

    python benchmarks/search.py

Stores of clustered random vectors, 256 values each. "one query": the ten nearest to one vector; "all pairs": the pairs whose
cosine is at least 0.9. Each search runs in a process of its own, so that its peak memory is its own; the variants take turns
within each round. Reading the store counts; for numpy also apart from that, on an array that is in memory already. The table
has medians over the rounds, and ratios to numpy of the same round; peak memory is the whole process's, as that of "imports",
which searches for nothing. faiss: of the pairs that exact search finds, how many.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import densefeat
from densefeat.search import approximate, exact
from densefeat.store import EmbeddingWriter, embedding_schema

SIZE = 256
THRESHOLD = 0.9
PIECE = 8192


def write_store(path: Path, rows: int) -> None:
    """One cluster for every hundred rows; not negative, as embeddings are."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((rows // 100, SIZE), np.float32)
    with EmbeddingWriter(path, embedding_schema({"block4": (SIZE,)}, {})) as writer:
        for start in range(0, rows, PIECE):
            count = min(PIECE, rows - start)
            noise = 0.4 * generator.standard_normal((count, SIZE), np.float32)
            vectors = np.maximum(centres[generator.integers(0, len(centres), count)] + noise, 0)
            keys = [f"folder/{i:08}.jpg" for i in range(start, start + count)]
            writer.append({"path": keys, "width": [1] * count, "height": [1] * count}, {"block4": vectors})


def numpy_nearest(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    similarity = vectors @ query[0] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    best = np.argpartition(-similarity, 10)[:10]
    return best[np.argsort(-similarity[best])]


def numpy_pairs(vectors: np.ndarray) -> int:
    """A thousand rows with all, so that it fits into memory."""
    scaled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = 0
    for start in range(0, len(scaled), 1000):
        first, second = np.nonzero(scaled[start : start + 1000] @ scaled.T >= THRESHOLD)
        found += int((first + start < second).sum())
    return found


def run_one(variant: str, path: Path) -> dict[str, float]:
    """Seconds, seconds without reading (numpy alone), peak MB, and pairs found."""
    store = densefeat.open_store(path)
    query = store.read("block4", 5, 6)
    began = in_memory = time.perf_counter()
    found = 0
    if variant.startswith("numpy"):
        vectors = store["block4"]
        in_memory = time.perf_counter()
        found = numpy_pairs(vectors) if variant == "numpy pairs" else int(numpy_nearest(vectors, query)[0])
    elif variant == "imports":
        pass
    elif variant == "one query":
        found = int(exact.nearest(store, query, "block4")[0][0, 0])
    else:
        engine = approximate if variant == "faiss pairs" else exact
        found = len(engine.near_duplicates(store, "block4", THRESHOLD, max_pairs=10**8).first)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": ended - began, "in memory": ended - in_memory, "megabytes": peak, "found": found}


def measure(variants: list[str], path: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """After one round to warm up the file cache; the order turns round by round."""
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for i in range(rounds + 1):
        for variant in variants[:: 1 if i % 2 else -1]:
            command = [sys.executable, __file__, "--one", variant, "--store", str(path)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if i:
                results[variant].append(told)
    return results


def print_table(results: dict[str, list[dict[str, float]]], baseline: str) -> None:
    table = Table(
        "variant", "seconds", "of it in memory", "ratio to numpy (range)", "peak MB", "found", box=None, pad_edge=False
    )
    for name, runs in results.items():
        ratios = [base["seconds"] / max(own["seconds"], 1e-9) for base, own in zip(results[baseline], runs, strict=True)]
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if name != "imports" else ""
        apart = f"{median['in memory']:.2f}" if name.startswith("numpy") else ""
        found = f"{median['found']:,.0f}" if "pairs" in name else ""
        table.add_row(name, f"{median['seconds']:.2f}", apart, spread, f"{median['megabytes']:.0f}", found)
    Console().print(table)


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, help="For one query.")
@click.option("--pair-rows", default=50_000, show_default=True, help="For all pairs.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--one", hidden=True)
@click.option("--store", type=click.Path(path_type=Path), hidden=True)
def main(rows: int, pair_rows: int, rounds: int, one: str | None, store: Path | None) -> None:
    """Measure and print."""
    if one is not None and store is not None:
        click.echo(json.dumps(run_one(one, store)))
        return
    print(f"{SIZE} values a row, float32, CPU {platform.machine()}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        for title, count, variants in (
            ("ten nearest to one query", rows, ["numpy query", "one query", "imports"]),
            (f"all pairs with a cosine of at least {THRESHOLD}", pair_rows, ["numpy pairs", "exact pairs", "faiss pairs"]),
        ):
            path = Path(temporary, f"{count}.parquet")
            write_store(path, count)
            print(f"{title}, {count:,} rows, {path.stat().st_size / 2**20:,.0f} MB on disk")
            print_table(measure(variants, path, rounds), variants[0])


if __name__ == "__main__":
    main()
