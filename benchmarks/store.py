"""Opening and reading a store of a million rows, time and memory, against the same vectors as raw .npy files.

    python benchmarks/store.py

The store is written once by densefeat's own writer to a temporary folder and kept there; the .npy files come from it by
`densefeat convert`. Rows are made up, half-normal as pooled activations are: nearly incompressible. Blocks of 256 and 128
channels by default, 1.5 GB each way; --channels 256,512,1024,1024 has DenseNet-121's, 11 GB each way. Every reading is a
process of its own, after its imports and with the files in the page cache; the variants take turns within each round. Memory
is what the process's peak resident size grows by, the array that is returned included.
"""

import math
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import densefeat

PART_ROWS = 8192
MIDDLE_ROWS = 10_000
OURS = "densefeat"


def write_store(root: Path, rows: int, channels: list[int]) -> None:
    """Parts, records and manifest, as an extraction writes them."""
    from densefeat.store import (
        EmbeddingWriter,
        Layout,
        Manifest,
        PartRecord,
        Round,
        begin,
        check_folder,
        close,
        embedding_schema,
        finish_part,
    )

    shapes = {f"block{i}": (count,) for i, count in enumerate(channels, 1)}
    layout = Layout(root)
    check_folder(layout)
    manifest = Manifest({}, {"model": "made-up"}, "made-up", (Round(0, "", "", rows),))
    begin(layout, manifest)
    schema = embedding_schema(shapes, manifest.provenance)
    generator = np.random.default_rng(0)
    for part, start in enumerate(range(0, rows, PART_ROWS)):
        stop = min(start + PART_ROWS, rows)
        with EmbeddingWriter(layout.unfinished(part), schema) as writer:
            for first in range(start, stop, 1024):
                n = min(1024, stop - first)
                keys = [f"class_{i % 1000:03}/image_{i:07}.jpg" for i in range(first, first + n)]
                values = {name: np.abs(generator.standard_normal((n, *shape), np.float32)) for name, shape in shapes.items()}
                writer.append({"path": keys, "width": [500] * n, "height": [375] * n}, values)
        finish_part(layout, manifest.round_id, PartRecord(part, start, stop, stop, stop - start, 0))
    close(layout, manifest)


def prepared(root: Path, rows: int, channels: list[int]) -> tuple[Path, Path]:
    """The store and the folder of .npy files, made where an earlier run has not."""
    from densefeat.errors import DensefeatError
    from densefeat.store import convert, open_store

    store, arrays = root / "store", root / "npy"
    try:
        whole = open_store(store).complete
    except DensefeatError:
        whole = False
    if not whole:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        print(f"writing {rows:,} rows to {root} …")
        write_store(store, rows, channels)
    if not arrays.exists():
        convert(store, "npy", arrays)
    return store, arrays


@dataclass(frozen=True)
class Files:
    """One block, in both kinds of file."""

    store: Path
    array: Path
    block: str = "block1"

    def open(self) -> "densefeat.Store":
        import densefeat

        return densefeat.open_store(self.store)

    def load(self) -> np.ndarray:
        return np.load(self.array)

    def map(self) -> np.ndarray:
        return np.load(self.array, mmap_mode="r")

    def middle(self) -> slice:
        first = (len(self.map()) - MIDDLE_ROWS) // 2
        return slice(first, first + MIDDLE_ROWS)


def middle_of_store(files: Files) -> np.ndarray:
    rows = files.middle()
    return files.open().read(files.block, rows.start, rows.stop)


STEPS: dict[str, dict[str, Callable[[Files], object]]] = {
    "open": {"np.load, mapped": Files.map, OURS: Files.open},
    "one block": {
        "np.load": Files.load,
        "np.load, mapped, copied": lambda files: np.array(files.map()),
        OURS: lambda files: files.open()[files.block],
    },
    "10,000 rows in the middle": {
        "np.load, mapped, copied": lambda files: np.array(files.map()[files.middle()]),
        OURS: middle_of_store,
    },
    "all keys": {OURS: lambda files: files.open().keys},
}


def measured(step: str, variant: str, files: Files) -> tuple[float, float]:
    """Seconds, and MB that the peak resident size grew by (Linux; elsewhere not a number)."""
    if variant == OURS:
        import_module("densefeat")
    before = peak_resident(reset=True)
    began = time.perf_counter()
    result = STEPS[step][variant](files)
    seconds = time.perf_counter() - began
    grown = peak_resident() - before
    del result
    return seconds, grown


def peak_resident(reset: bool = False) -> float:
    """MB; with ``reset`` the peak is first set back to what is resident now. (getrusage reports the parent's, if higher.)"""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    except OSError:
        return math.nan
    return int(line.split()[1]) * 1024 / 1e6


def alone(*step: object) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measured, *step).result()


def check_equal(files: Files) -> None:
    raw = files.map()
    for first, values in files.open().batches(files.block):
        if not np.array_equal(values, raw[first : first + len(values)]):
            raise click.ClickException(f"rows {first:,} and on differ from the .npy file: nothing to compare")


def print_table(results: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    table = Table("", "", "s (median)", "MB more (median)", "time to np.load's (median, range)", box=None, pad_edge=False)
    for (step, variant), runs in results.items():
        baseline = results[step, next(iter(STEPS[step]))]
        ratios = [own[0] / base[0] for own, base in zip(runs, baseline, strict=True)]
        spread = "" if runs is baseline else f"{statistics.median(ratios):.1f}  ({min(ratios):.1f} to {max(ratios):.1f})"
        seconds, grown = (statistics.median(values) for values in zip(*runs, strict=True))
        table.add_row(step, variant, f"{seconds:.4f}", f"{grown:,.0f}", spread)
    Console(width=120).print(table)


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--channels", default="256,128", show_default=True, help="Of each block; the first is read.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()), show_default=True)
def main(rows: int, channels: str, rounds: int, folder: Path) -> None:
    """Measure and print."""
    counts = [int(count) for count in channels.split(",")]
    root = folder / f"densefeat-store-{rows}-{channels.replace(',', '-')}"
    store, arrays = prepared(root, rows, counts)
    files = Files(store, arrays / "block1.npy")
    check_equal(files)
    sizes = [sum(file.stat().st_size for file in place.iterdir()) / 1e6 for place in (store / "data", arrays)]
    print(f"{rows:,} rows of {channels} channels, float32: store {sizes[0]:,.0f} MB, .npy {sizes[1]:,.0f} MB;")
    print(f"one block is {rows * counts[0] * 4 / 1e6:,.0f} MB; CPU {platform.machine()}, numpy {np.__version__}")
    results: dict[tuple[str, str], list[tuple[float, float]]] = {
        (step, variant): [] for step, variants in STEPS.items() for variant in variants
    }
    for i in range(rounds):
        for step, variant in list(results)[:: 1 if i % 2 else -1]:
            results[step, variant].append(alone(step, variant, files))
    print_table(results)
    print(f"the files stay at {root}")


if __name__ == "__main__":
    main()
