"""Test accuracy of the cross-layer head against plain heads, on a frozen network's blocks.

    python benchmarks/cross_layer.py --data DATA --out OUT

The bundled network (Tiny ImageNet, 32×32) reads CIFAR-10 from DATA/cifar10-train.parquet and DATA/cifar10-test.parquet; its
weights do not move. Each block's map after its norm is averaged down to the last block's 8×8 and kept on disk in float16.

Heads: "linear" reads standardised, pooled features; "1×1" is a 1×1 convolution, BatchNorm, ReLU, pooling, linear, on the last
block's map or on all maps side by side; "cross-layer" is densefeat.heads.cross_layer. All are trained alike: AdamW, cosine, the
same epochs without augmentation. Each has its own learning rate, that with the highest accuracy on a tenth of the training
images, which it then learns from, too. Accuracy is the mean over seeds; its 95 % interval, and that of the difference to the
cross-layer head on the same images, is of the choice of test images. Seconds are of one training. OUT gets cross_layer.json and
the picture of how the head uses the blocks.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from densefeat.base import atomic_file, progress_bar
from densefeat.features import FeatureExtractor
from densefeat.heads import CrossLayerHead
from densefeat.heads.cross_layer import pooled_to
from densefeat.heads.usage_chart import draw_usage
from densefeat.training import Encoded, open_labelled
from densefeat.training.device_data import decode_encoded

MODEL = "densefeat_densenet_bc100_k12"
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
WEIGHT_DECAY, BATCH = 0.05, 128
SIZE = (8, 8)  # of the last block's map


@dataclass(frozen=True)
class Images:
    """``maps``: float16 ``(n, C, 8, 8)`` of each block; ``labels``: int64 ``(n,)``."""

    maps: list[np.ndarray]
    labels: torch.Tensor

    def pooled(self) -> torch.Tensor:
        """float32 ``(n, C, 1, 1)``, the blocks side by side."""
        means = [np.stack([part.mean((1, 2), np.float32) for part in block]) for block in self.maps]
        return torch.from_numpy(np.concatenate(means, 1))[:, :, None, None]


@dataclass(frozen=True)
class Heads:
    """One kind of head: ``make`` takes the channels of each block; ``pooled``: whether it reads features instead of maps."""

    name: str
    pooled: bool
    last: bool
    make: Callable[[list[int]], nn.Module]


class Linear(nn.Module):
    """Of pooled features ``(N, C, 1, 1)``, standardised by what it saw in training."""

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(sum(channels), affine=False)
        self.classifier = nn.Linear(sum(channels), num_classes)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.classifier(self.norm(torch.cat(maps, 1)).flatten(1))


class SideBySide(nn.Module):
    """1×1 convolution of all maps to ``width``, BatchNorm, ReLU, pooling, linear."""

    def __init__(self, channels: list[int], width: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(sum(channels), width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.classifier(F.relu(self.norm(self.project(torch.cat(maps, 1)))).mean((2, 3)))


def all_heads(width: int, num_classes: int) -> list[Heads]:
    def linear(channels: list[int]) -> nn.Module:
        return Linear(channels, num_classes)

    def side_by_side(channels: list[int]) -> nn.Module:
        return SideBySide(channels, width, num_classes)

    def cross_layer(channels: list[int]) -> nn.Module:
        return CrossLayerHead([dict(num_chs=count) for count in channels], width, num_classes)

    return [
        Heads("linear, last block", True, True, linear),
        Heads("linear, all blocks", True, False, linear),
        Heads("1×1, last block", False, True, side_by_side),
        Heads("1×1, all blocks", False, False, side_by_side),
        Heads("cross-layer", False, False, cross_layer),
    ]


def cached(extractor: FeatureExtractor, path: Path, rows: int | None, train: bool, folder: Path) -> Images:
    """Maps of some random rows (None: of all, in their order) in files of ``folder``."""
    labelled = open_labelled(str(path), train)
    assert isinstance(labelled, Encoded)
    count = len(labelled.labels)
    with progress_bar(f"decode {path.name}", count) as advance:
        pixels, labels, _ = decode_encoded(labelled, extractor.preprocessing, advance)
    chosen = np.arange(count) if rows is None else np.random.default_rng(0).permutation(count)[:rows]
    maps: list[np.ndarray] = []
    with progress_bar(f"maps of {path.name}", len(chosen)) as advance:
        for start in range(0, len(chosen), 64):
            some = torch.from_numpy(pixels[chosen[start : start + 64]]).permute(0, 3, 1, 2)
            found = extractor.forward(extractor.preprocessing.normalize(some))
            for block, given in enumerate(found.values()):
                values = pooled_to(given, SIZE).half().numpy()
                if start == 0:
                    shape = (len(chosen), *values.shape[1:])
                    maps.append(np.memmap(folder / f"{path.stem}-{block}", np.float16, "w+", shape=shape))
                maps[block][start : start + len(values)] = values
            advance(len(some))
    return Images(maps, torch.from_numpy(labels[chosen]))


class Reader:
    """Batches of what one kind of head reads, float32."""

    def __init__(self, heads: Heads, images: Images) -> None:
        self.images, self.heads = images, heads
        channels = [block.shape[1] for block in images.maps]
        self.channels = channels[-1:] if heads.last else channels
        self.pooled = images.pooled()[:, -sum(self.channels) :] if heads.pooled else None

    def __call__(self, rows: np.ndarray) -> list[torch.Tensor]:
        if self.pooled is not None:
            return [self.pooled[rows]]
        return [torch.from_numpy(block[rows]).float() for block in self.images.maps[-len(self.channels) :]]


def trained(heads: Heads, read: Reader, rows: np.ndarray, rate: float, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    head = heads.make(read.channels).train()
    optimizer = create_optimizer_v2(head, "adamw", lr=rate, weight_decay=WEIGHT_DECAY)
    batch = min(BATCH, len(rows))
    steps = len(rows) // batch
    schedule = CosineLRScheduler(optimizer, epochs * steps, t_in_epochs=False)
    for epoch in range(epochs):
        shuffled = order.permutation(rows)
        for step in range(steps):
            schedule.step_update(epoch * steps + step)
            some = shuffled[step * batch : (step + 1) * batch]
            loss = F.cross_entropy(head(read(some)), read.images.labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head.eval()


@torch.inference_mode()
def hits(head: nn.Module, read: Reader, rows: np.ndarray) -> np.ndarray:
    """bool ``(n,)``."""
    parts = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    return np.concatenate([(head(read(part)).argmax(1) == read.images.labels[part]).numpy() for part in parts])


def judged(
    heads: Heads, train: Images, test: Images, epochs: int, seeds: int, advance: Callable[[int], None]
) -> dict[str, Any]:
    """``hits``: share of seeds that are right on each test image; and what else the table has. Also the last head."""
    read, read_test = Reader(heads, train), Reader(heads, test)
    rows = np.random.default_rng(1).permutation(len(train.labels))
    held, rest = rows[: len(rows) // 10], rows[len(rows) // 10 :]
    chosen = []
    for rate in RATES:
        chosen.append(100 * hits(trained(heads, read, rest, rate, epochs, 0), read, held).mean())
        advance(1)
    rate = RATES[int(np.argmax(chosen))]
    found, began, spent = [], 0.0, []
    for seed in range(seeds):
        began = time.perf_counter()
        head = trained(heads, read, rows, rate, epochs, seed)
        spent.append(time.perf_counter() - began)
        found.append(hits(head, read_test, np.arange(len(test.labels))))
        advance(1)
    return {
        "hits": np.mean(found, 0),
        "head": head,
        "rate": rate,
        "held_out": dict(zip(map(str, RATES), chosen, strict=True)),
        "seeds": [100 * float(some.mean()) for some in found],
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "seconds": float(np.median(spent)),
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean of ``(n,)`` shares in per cent, and what to add and take away for 95 %, by its standard error."""
    return 100 * float(values.mean()), 196 * float(values.std(ddof=1)) / len(values) ** 0.5


def print_table(results: dict[str, dict[str, Any]]) -> None:
    table = Table(
        "head", "test top-1, %", "seeds", "cross-layer less it", "parameters", "rate", "seconds", box=None, pad_edge=False
    )
    for name, found in results.items():
        other = found["less"]
        less = "" if other is None else f"{other[0]:+.2f} ± {other[1]:.2f}"
        spread = f"{min(found['seeds']):.2f} to {max(found['seeds']):.2f}"
        accuracy = f"{found['top1'][0]:.2f} ± {found['top1'][1]:.2f}"
        table.add_row(name, accuracy, spread, less, f"{found['parameters']:,}", f"{found['rate']:g}", f"{found['seconds']:.1f}")
    Console(width=120).print(table)


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--rows", default=5000, show_default=True, type=click.IntRange(20), help="Training images.")
@click.option("--full", is_flag=True, help="All training images.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--width", default=64, show_default=True, type=click.IntRange(1))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
def main(data: Path, out: Path, rows: int, full: bool, epochs: int, width: int, seeds: int) -> None:
    """Train, measure, print."""
    out.mkdir(parents=True, exist_ok=True)
    extractor = FeatureExtractor(MODEL, pool="none", device="cpu")
    names = [tap.name for tap in extractor.taps]
    with tempfile.TemporaryDirectory(dir=out) as folder:
        train = cached(extractor, data / "cifar10-train.parquet", None if full else rows, True, Path(folder))
        test = cached(extractor, data / "cifar10-test.parquet", None, False, Path(folder))
        size = sum(block.nbytes for images in (train, test) for block in images.maps)
        kinds = all_heads(width, int(train.labels.max()) + 1)
        print(
            f"{len(train.labels):,} training images, {len(test.labels):,} test images, {epochs} epochs, width {width}, "
            f"maps of {sum(block.shape[1] for block in train.maps)} channels, {size:,} bytes on disk"
        )
        with progress_bar("train", len(kinds) * (len(RATES) + seeds), "heads") as advance:
            found = {heads.name: judged(heads, train, test, epochs, seeds, advance) for heads in kinds}
    head = found["cross-layer"].pop("head")
    ours = found["cross-layer"]["hits"]
    results = {
        name: {key: value for key, value in kept.items() if key not in ("hits", "head")}
        | {"top1": interval(kept["hits"]), "less": None if name == "cross-layer" else interval(ours - kept["hits"])}
        for name, kept in found.items()
    }
    print_table(results)
    usage = head.block_usage().numpy()
    drawn = draw_usage(usage, names, out / "block_usage")
    print("mean share of each block: " + ", ".join(f"{n} {100 * u:.0f} %" for n, u in zip(names, usage.mean(1), strict=True)))
    told = {"rows": len(train.labels), "epochs": epochs, "width": width, "bytes": size, "heads": results}
    with atomic_file(out / "cross_layer.json") as beside:
        beside.write_text(json.dumps(told | {"usage": usage.mean(1).tolist()}, indent=1) + "\n")
    print(f"{out / 'cross_layer.json'}{', block_usage.png and .svg beside it' if drawn else ''}")


if __name__ == "__main__":
    main()
