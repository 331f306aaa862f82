"""Images per second: FeatureExtractor against timm's forward_intermediates in the loop a user would write, on the same weights.

    python benchmarks/extract.py --images photos/

Both give every block's average-pooled features. "network": prepared batches in memory; "files": JPEG files to features in one
process; "job": `densefeat extract` with its decode threads, against that same loop over files. The variants take turns within
each round; the table has medians over the rounds, and ratios to timm of the same round. Where the first three blocks at tap
raw do not equal timm's, it stops.

Below: where the wall time of a job to a folder goes, as its main thread sees it, every stage at its defaults; and how far bf16
is from fp32.
"""

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click
import timm
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import densefeat
from densefeat.bench.networks import image_files
from densefeat.extraction import folder as job_folder
from densefeat.extraction import part as job_part
from densefeat.store import EmbeddingWriter

BUNDLED = "densefeat_densenet_bc100_k12"
STAGES = ("start", "read and decode", "network", "write", "rest")


def sample_photographs(folder: Path, count: int) -> None:
    """Pieces of scikit-learn's two photographs, scaled to ``count`` different JPEG files of ordinary size."""
    folder.mkdir(exist_ok=True)
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for i in range(count):
        image = images[i % 2]
        image.resize((500 + i, 375 + i), box=(i % 7, i % 5, image.width, image.height)).save(folder / f"{i:03}.jpg", quality=90)


def chosen_photographs(folder: Path, count: int, chosen: Path) -> list[Path]:
    """The first ``count`` image files below ``folder``, copied to ``chosen``."""
    chosen.mkdir()
    found = image_files(folder)[:count]
    return [shutil.copyfile(path, chosen / f"{i:05}{path.suffix}") for i, path in enumerate(found)]


def calibrated(model: nn.Module) -> nn.Module:
    """Random weights whose BatchNorms have statistics, of noise: without, features of a deep network exceed float16."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def timm_features(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the extractor gives, by timm's own means: blocks 1 to 3 and the final norm, average-pooled."""
    with torch.inference_mode():
        maps = model.forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)
        return {f"block{i}": block.mean((2, 3)) for i, block in enumerate(maps, 1)}


def timm_from_files(model: nn.Module, transform: Callable, paths: list[Path], batch_size: int) -> list[dict[str, torch.Tensor]]:
    results = []
    for start in range(0, len(paths), batch_size):
        images = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + batch_size]]
        results.append(timm_features(model, torch.stack(images)))
    return results


def check_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest relative difference over blocks 1 to 3; stops the benchmark above 1e-5."""
    worst = max(float((ours[b] - theirs[b]).norm() / theirs[b].norm()) for b in ("block1", "block2", "block3"))
    if worst > 1e-5:
        raise click.ClickException(f"the features differ by {worst:.1e}: nothing to compare")
    return worst


def measure(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round, after one round to warm up; the order turns round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 1):
        for name in list(variants)[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            variants[name]()
            if i:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def print_table(seconds: dict[str, list[float]], images: int, baseline_of: dict[str, str]) -> None:
    table = Table("variant", "images/s (median)", "ratio to timm (median, range)", box=None, pad_edge=False)
    for name, values in seconds.items():
        ratios = [base / own for base, own in zip(seconds[baseline_of[name]], values, strict=True)]
        spread = f"{statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(name, f"{images / statistics.median(values):.1f}", spread)
    Console().print(table)


class Stopwatch:
    """Wall seconds by stage of whatever it watches, children apart: time inside two stages counts for the inner one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def call(self, name: str, function: Callable) -> Callable:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed

    def generator(self, name: str, function: Callable) -> Callable:
        """The time inside the generator, not that of its consumer between two values."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            values = function(*args, **kwargs)
            end = object()
            while True:
                with self.stage(name):
                    value = next(values, end)
                if value is end:
                    return
                yield value

        return timed


def seconds_by_stage(job: Callable[[], object]) -> dict[str, float]:
    """Of a job to a folder in this process. What a part needs outside its loop is opening, closing, syncing, recording it."""
    watch = Stopwatch()
    watched = (
        (job_part, "decoded_batches", "read and decode", watch.generator),
        (job_part, "run_network", "network", watch.generator),
        (job_part.PartExtractor, "append_rows", "rest", watch.call),
        (EmbeddingWriter, "append", "write", watch.call),
        (job_folder, "extract_part", "write", watch.call),
        (job_folder, "finish", "write", watch.call),
    )
    with ExitStack() as stack:
        for owner, name, stage, kind in watched:
            original = getattr(owner, name)
            setattr(owner, name, kind(stage, original))
            stack.callback(setattr, owner, name, original)
        with watch.stage("start"):
            job()
    return {stage: watch.seconds.get(stage, 0.0) for stage in STAGES}


def print_stages(runs: list[dict[str, float]], images: int) -> None:
    table = Table("stage", "seconds (median)", "share of the run (median, range)", box=None, pad_edge=False)
    totals = [sum(run.values()) for run in runs]
    groups = {stage: (stage,) for stage in STAGES} | {"decode and write": ("read and decode", "write")}
    for name, stages in groups.items():
        seconds = [sum(run[stage] for stage in stages) for run in runs]
        shares = [100 * own / total for own, total in zip(seconds, totals, strict=True)]
        spread = f"{statistics.median(shares):.1f} %  ({min(shares):.1f} to {max(shares):.1f})"
        table.add_row(name, f"{statistics.median(seconds):.2f}", spread)
    print(f"a job of {images} images to a folder, {statistics.median(totals):.2f} s; imports are not in it")
    Console().print(table)


def print_precision(paths: list[Path], networks: dict[str, Path | None]) -> None:
    """``networks``: by name, their weights if not their own; at tap norm, average-pooled."""
    table = Table("network", "block", "cosine of bf16 to fp32, mean", "least", box=None, pad_edge=False)
    for name, weights in networks.items():
        made = (densefeat.FeatureExtractor(name, weights=weights, device="cpu", precision=kind) for kind in ("fp32", "bf16"))
        full, half = (extractor(paths) for extractor in made)
        for block, features in full.items():
            cosine = torch.nn.functional.cosine_similarity(features.double(), half[block].double())
            label = f"{name}, random weights" if weights else name
            table.add_row(label, block, f"{cosine.mean():.6f}", f"{cosine.min():.6f}")
    Console(width=120).print(table)


@click.command()
@click.option(
    "--images", "folder", type=click.Path(exists=True, path_type=Path), help="Folder; without, scikit-learn's photographs."
)
@click.option("--count", default=64, show_default=True, help="Photographs a round.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(folder: Path | None, count: int, batch_size: int, rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary, "photos")
            sample_photographs(folder, count)
        run(folder, Path(temporary), count, batch_size, rounds)


def run(folder: Path, temporary: Path, count: int, batch_size: int, rounds: int) -> None:
    torch.manual_seed(0)
    theirs = calibrated(timm.create_model("densenet121"))
    weights = temporary / "random.pt"
    torch.save(theirs.state_dict(), weights)
    extractor = densefeat.FeatureExtractor("densefeat_densenet121", tap="raw", weights=weights, device="cpu")
    transform = create_transform(**resolve_model_data_config(theirs))
    chosen = temporary / "chosen"
    paths = chosen_photographs(folder, count, chosen)
    batch = extractor.prepare(paths[:batch_size])
    worst = check_equal(extractor(batch), timm_features(theirs, batch.contiguous()))

    def job() -> object:
        return densefeat.extract(
            chosen, temporary / "e.parquet", extractor.model, tap="raw", batch_size=batch_size, device="cpu"
        )

    network = {
        "network: timm": lambda: [timm_features(theirs, batch) for _ in range(len(paths) // len(batch))],
        "network: densefeat": lambda: [extractor.forward(batch) for _ in range(len(paths) // len(batch))],
    }
    files = {
        "files: timm loop": lambda: timm_from_files(theirs, transform, paths, batch_size),
        "files: densefeat": lambda: extractor(paths),
        "job: densefeat.extract": job,
    }
    allocator = "tuned" if "MALLOC_TRIM_THRESHOLD_" in os.environ else "default"
    print(f"DenseNet-121, {len(paths)} photographs, batch {batch_size}, float32, CPU {platform.machine()},")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, glibc allocator {allocator}")
    print(f"largest relative difference of blocks 1 to 3 at tap raw: {worst:.1e}")
    print_table(measure(network, rounds), len(paths) // len(batch) * len(batch), dict.fromkeys(network, "network: timm"))
    print_table(measure(files, rounds), len(paths), dict.fromkeys(files, "files: timm loop"))

    def to_folder() -> object:
        options = {"batch_size": batch_size, "device": "cpu", "overwrite": True}
        return densefeat.extract(chosen, temporary / "store", "densefeat_densenet121", weights, **options)

    print_stages([seconds_by_stage(to_folder) for _ in range(rounds)], len(paths))
    print_precision(paths, {"densefeat_densenet121": weights, BUNDLED: None})


if __name__ == "__main__":
    main()
