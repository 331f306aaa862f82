"""Images per second: FeatureExtractor against timm's forward_intermediates in the loop a user would write, on the same weights.

    python benchmarks/extract.py --images photos/

Both give every block's average-pooled features. "network": prepared batches in memory; "files": JPEG files to features in one
process; "job": `densefeat extract` with its decode workers, against that same loop over files. The variants take turns within
each round; the table has medians over the rounds, and ratios to timm of the same round. Where the first three blocks at tap
raw do not equal timm's, it stops.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
from densefeat.images.sources import find_images


def sample_photographs(folder: Path, count: int) -> None:
    """Pieces of scikit-learn's two photographs, scaled to ``count`` different JPEG files of ordinary size."""
    folder.mkdir(exist_ok=True)
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for i in range(count):
        image = images[i % 2]
        image.resize((500 + i, 375 + i), box=(i % 7, i % 5, image.width, image.height)).save(folder / f"{i:03}.jpg", quality=90)


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
    theirs = timm.create_model("densenet121").eval()
    weights = temporary / "random.pt"
    torch.save(theirs.state_dict(), weights)
    extractor = densefeat.FeatureExtractor("densefeat_densenet121", tap="raw", weights=weights, device="cpu")
    transform = create_transform(**resolve_model_data_config(theirs))
    chosen = temporary / "chosen"
    chosen.mkdir()
    for file in find_images(folder)[:count]:
        (chosen / file.key.replace("/", "_")).write_bytes(file.read())
    paths = sorted(chosen.iterdir())
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


if __name__ == "__main__":
    main()
