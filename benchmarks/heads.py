"""What heads and fine-tuning reach on a frozen network's features, and what choosing a logistic regression costs.

    python benchmarks/heads.py logreg --rounds 1
    python benchmarks/heads.py logreg --full
    python benchmarks/heads.py cross-layer --data DATA --out OUT
    python benchmarks/heads.py finetune --data DATA

DATA has cifar10-train.parquet and cifar10-test.parquet, in the datasets layout. The network is the bundled one.
"""

import io
import json
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

import densefeat
from densefeat.bench import Report, benchmark_options, measure_rounds, rate_rows, read_peak, reset_peak
from densefeat.evaluation import evaluate
from densefeat.finetuning import finetune, load_finetuning
from densefeat.heads import CrossLayerHead, draw_usage
from densefeat.labels import Targets
from densefeat.probing import fit_head, probe

MODEL = "densefeat_densenet_bc100_k12"
C = tuple(10.0 ** np.linspace(-6, 5, 45))  # the grid of the protocol logreg
RATES, WEIGHT_DECAY, BATCH, MAP = (1e-3, 3e-3, 1e-2, 3e-2), 0.05, 128, (8, 8)
data_option = click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)


@click.group()
def main() -> None:
    """Measure and print."""


# ---------------------------------------------------------------- logreg


def make_rows(rows: int, features: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping clusters a class, variances that fall like 1/i, turned, and cut off at 0 as pooled features are."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, classes, rows)
    centres = 4 * generator.normal(size=(classes, 1, features)) + 2.4 * generator.normal(size=(classes, 3, features))
    centres /= features**0.5
    turn = np.linalg.qr(generator.normal(size=(features, features)))[0] * 3
    turn *= np.arange(1, features + 1)[:, None] ** -0.5
    x = np.empty((rows, features), np.float32)
    for start in range(0, rows, 4096):
        labels = y[start : start + 4096]
        latent = centres[labels, generator.integers(0, 3, len(labels))] + generator.normal(size=(len(labels), features))
        x[start : start + 4096] = np.maximum(latent @ turn + 0.3, 0)
    return x, y


def fit_one(arm: str, rows: int, features: int, classes: int) -> dict[str, float]:
    """CPU and wall seconds, the C chosen, test accuracy, and peak memory over the features' size; in a process of its own."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import PredefinedSplit

    warnings.simplefilter("ignore")  # scikit-learn's, about fits that have not converged
    x, y = make_rows(2 * rows, features, classes)
    test, x = x[rows:], x[:rows]
    val = np.random.default_rng(1).permutation(rows) < rows // 10
    reset_peak()
    before, cpu, wall = read_peak(), time.process_time(), time.perf_counter()
    if arm == "densefeat":
        fitted = fit_head("logreg", x, Targets("single", tuple(map(str, range(classes))), y[:rows]), val)
        chosen, predictions = fitted.chosen["C"], fitted.head.scores(test).argmax(1)
    else:
        split, tolerance = PredefinedSplit(np.where(val, 0, -1)), float(arm.split()[-1])
        options: dict[str, Any] = {"cv": split, "tol": tolerance, "max_iter": 1000, "scoring": "accuracy"}
        model = LogisticRegressionCV(Cs=list(C), use_legacy_attributes=False, **options).fit(x, y[:rows])
        chosen, predictions = float(model.C_), model.predict(test)
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    accuracy = 100 * float((predictions == y[rows:]).mean())
    return spent | {"C": float(np.log10(chosen)), "accuracy": accuracy, "peak": 1 + (read_peak() - before) / x.nbytes}


def fit_alone(threads: int, *arguments: Any) -> dict[str, float]:
    """:func:`fit_one` in a new process, with as many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    variables = dict.fromkeys(names, str(threads)) | {"OMP_WAIT_POLICY": "passive"}
    with patch.dict(os.environ, variables), ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(fit_one, *arguments).result()


@main.command()
@click.option("--rows", default=5000, show_default=True, help="To fit on; as many to test.")
@click.option("--features", default=256, show_default=True)
@click.option("--classes", default=10, show_default=True)
@click.option("--full", is_flag=True, help="densefeat alone, once, on all cores: 50,000 rows, 1024 features, 100 classes.")
@benchmark_options(rounds=3)
def logreg(rows: int, features: int, classes: int, full: bool, rounds: int, file: Path | None) -> None:
    """Choose C of 45 values for a logistic regression, beside scikit-learn's LogisticRegressionCV; CPU seconds on one thread.

    All choose by accuracy on the same tenth of the rows and fit again on all. With tol 1e-4, its default, scikit-learn ends its
    fits of large C early; with 1e-6 they end near the minimum, as ours do.
    """
    arms, threads = ["densefeat", "scikit-learn, tol 1e-6", "scikit-learn, tol 1e-4"], 1
    if full:
        arms, threads, rows, features, classes, rounds = arms[:1], os.cpu_count() or 1, 50_000, 1024, 100, 1
    report = Report(f"{rows:,} rows, {features} features, {classes} classes, {len(C)} values of C, threads: {threads}", file)
    results = measure_rounds({arm: partial(fit_alone, threads, arm, rows, features, classes) for arm in arms}, rounds)
    table = rate_rows({arm: [each["cpu"] for each in own] for arm, own in results.items()}, arms[-1])
    for row in table:
        row |= {key: float(np.median([each[key] for each in results[row["arm"]]])) for key in ("wall", "C", "accuracy", "peak")}
        row["times"] = row["seconds"] / table[0]["seconds"]
    report.add(
        "logistic regression", table,
        "=arm | CPU seconds=seconds:.2f | times densefeat's=times:.1f | seconds=wall:.2f | log10 of C=C:.2f"
        " | test accuracy=accuracy:.2f | peak to features=peak:.2f",
    )  # fmt: skip


# ---------------------------------------------------------------- cross-layer


def read_table(data: Path, name: str) -> tuple[list[bytes], np.ndarray]:
    """Encoded images and labels of ``cifar10-NAME.parquet``."""
    table = pq.read_table(data / f"cifar10-{name}.parquet")
    return [image["bytes"] for image in table["image"].to_pylist()], table["label"].to_numpy()


class PlainHead(nn.Sequential):
    """Layers on all maps side by side."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return super().forward(torch.cat(maps, 1))


def make_head(name: str, channels: list[int], width: int, classes: int) -> nn.Module:
    count = sum(channels)
    if name.startswith("linear"):  # standardises by the statistics of training
        return PlainHead(nn.BatchNorm2d(count, affine=False), nn.Flatten(), nn.Linear(count, classes))
    if name.startswith("1×1"):
        project = [nn.Conv2d(count, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        return PlainHead(*project, nn.Flatten(), nn.Linear(width, classes))
    return CrossLayerHead([dict(num_chs=each) for each in channels], width, classes)


HEADS = ("linear, last block", "linear, all blocks", "1×1, last block", "1×1, all blocks", "cross-layer")
Maps = list[torch.Tensor]  # of each block float16 (n, C, 8, 8)


def extract_maps(extractor: densefeat.FeatureExtractor, images: list[bytes]) -> Maps:
    """Each block's maps, averaged down to the last block's 8×8."""
    parts: list[Maps] = []
    for start in range(0, len(images), 64):
        some = [Image.open(io.BytesIO(data)).convert("RGB") for data in images[start : start + 64]]
        maps = extractor.forward(extractor.prepare(some)).values()
        parts.append([F.adaptive_avg_pool2d(each, MAP).half() for each in maps])
    return [torch.cat(blocks) for blocks in zip(*parts, strict=True)]


def train_head(
    head: nn.Module, maps: Maps, labels: torch.Tensor, rows: np.ndarray, rate: float, epochs: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    optimizer = create_optimizer_v2(head.train(), "adamw", lr=rate, weight_decay=WEIGHT_DECAY)
    batch = min(BATCH, len(rows))
    steps = len(rows) // batch
    schedule = CosineLRScheduler(optimizer, epochs * steps, t_in_epochs=False)
    for epoch in range(epochs):
        order = generator.permutation(rows)
        for step in range(steps):
            schedule.step_update(epoch * steps + step)
            some = order[step * batch : (step + 1) * batch]
            loss = F.cross_entropy(head([block[some].float() for block in maps]), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    head.eval()


@torch.inference_mode()
def hits(head: nn.Module, maps: Maps, labels: torch.Tensor) -> np.ndarray:
    """bool ``(n,)``: whether the head is right on each image."""
    parts = [
        head([block.float() for block in part]).argmax(1) for part in zip(*(block.split(256) for block in maps), strict=True)
    ]
    return (torch.cat(parts) == labels).numpy()


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean of ``(n,)`` shares in per cent, and the half width of its 95 % interval by the standard error."""
    return 100 * float(values.mean()), 196 * float(values.std(ddof=1)) / len(values) ** 0.5


@main.command("cross-layer")
@data_option
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="For the picture of block usage.")
@click.option("--rows", default=5000, show_default=True, type=click.IntRange(20), help="Training images.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--width", default=64, show_default=True, type=click.IntRange(1))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@benchmark_options()
def cross_layer(data: Path, out: Path, rows: int, epochs: int, width: int, seeds: int, file: Path | None) -> None:
    """Test accuracy of the cross-layer head beside plain heads, on all blocks' maps of a frozen network.

    All heads are trained alike: AdamW, cosine, no augmentation. Each has the learning rate with the highest accuracy on a tenth
    of the training images, which it then learns from, too. Accuracy is the mean over seeds; its 95 % interval, and that of the
    difference to the cross-layer head, is over the choice of test images. Seconds are of one training.
    """
    out.mkdir(parents=True, exist_ok=True)
    extractor = densefeat.FeatureExtractor(MODEL, pool="none", device="cpu")
    images, codes = read_table(data, "train")
    chosen = np.random.default_rng(0).permutation(len(images))[:rows]
    labels, classes = torch.from_numpy(codes[chosen]), int(codes.max()) + 1
    test_images, test_codes = read_table(data, "test")
    train, test = extract_maps(extractor, [images[i] for i in chosen]), extract_maps(extractor, test_images)
    size = sum(block.nbytes for block in (*train, *test))
    report = Report(
        f"{len(labels):,} training and {len(test_codes):,} test images, {epochs} epochs, maps: {size:,} bytes", file
    )
    order = np.random.default_rng(1).permutation(len(labels))
    held, rest = order[: len(order) // 10], order[len(order) // 10 :]
    results: list[dict[str, Any]] = []
    for name in HEADS:
        own, own_test = (train[-1:], test[-1:]) if "last" in name else (train, test)
        if name.startswith("linear"):  # it reads pooled features
            own, own_test = ([block.float().mean((2, 3), keepdim=True) for block in maps] for maps in (own, own_test))

        def fit(rows: np.ndarray, rate: float, seed: int, name: str = name, own: Maps = own) -> nn.Module:
            torch.manual_seed(seed)
            head = make_head(name, [block.shape[1] for block in own], width, classes)
            train_head(head, own, labels, rows, rate, epochs, seed)
            return head

        scores = [hits(fit(rest, rate, 0), [block[held] for block in own], labels[held]).mean() for rate in RATES]
        rate, began = RATES[int(np.argmax(scores))], time.perf_counter()
        heads = [fit(order, rate, seed) for seed in range(seeds)]
        seconds = (time.perf_counter() - began) / seeds
        right = np.array([hits(head, own_test, torch.from_numpy(test_codes)) for head in heads])
        tops = 100 * right.mean(1)
        results.append({
            "head": name, "hits": right.mean(0), "seeds": f"{tops.min():.2f} to {tops.max():.2f}", "rate": rate,
            "parameters": sum(each.numel() for each in heads[0].parameters()), "seconds": seconds,
        })  # fmt: skip
    best = results[-1]["hits"]
    for row in results:
        own_hits = row.pop("hits")
        row["top1"] = "{:.2f} ± {:.2f}".format(*interval(own_hits))
        row["less"] = None if row is results[-1] else "{:+.2f} ± {:.2f}".format(*interval(best - own_hits))
    report.add(
        "heads", results,
        "head=head | test top-1, %=top1 | seeds=seeds | cross-layer less it=less | parameters=parameters:, | rate=rate:g"
        " | seconds=seconds:.1f",
    )  # fmt: skip
    usage, names = heads[-1].block_usage().numpy(), [tap.name for tap in extractor.taps]  # type: ignore[operator]
    draw_usage(usage, names, out / "block_usage")
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(names, usage.mean(1), strict=True))
    report.note("block usage", usage.mean(1).tolist(), f"mean share of each block: {shares}; {out / 'block_usage.png'}")


# ---------------------------------------------------------------- finetune


def write_folder(data: Path, name: str, folder: Path, classes: list[int], count: int) -> None:
    """The first ``count`` images of each class, as files."""
    images, labels = read_table(data, name)
    for label in classes:
        (folder / f"class {label}").mkdir(parents=True)
        for number in np.flatnonzero(labels == label)[:count]:
            (folder / f"class {label}" / f"{number:06}.jpg").write_bytes(images[number])


@main.command("finetune")
@data_option
@click.option("--classes", default="3,5", show_default=True, help="Numbers of the classes: cats and dogs of CIFAR-10.")
@click.option("--images", default=150, show_default=True, help="Of each class to learn from.")
@click.option("--test", default=500, show_default=True, help="Of each class to test on.")
@click.option("--device", default="cpu", show_default=True)
@benchmark_options()
def compare_finetuning(data: Path, classes: str, images: int, test: int, device: str, file: Path | None) -> None:
    """Fine-tuning beside a probe, from the same images: test accuracy with its 95 % interval, and seconds."""
    numbers, rows = [int(number) for number in classes.split(",")], []
    report = Report(f"{len(numbers)} classes, {images} images each; {device}", file, device)

    def add(what: str, began: float, top1: float, low: float, high: float) -> None:
        row = {"what": what, "top1": top1, "interval": f"{low:.1f} to {high:.1f}", "seconds": time.monotonic() - began}
        rows.append(row)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_folder(data, "train", work / "train", numbers, images)
        write_folder(data, "test", work / "test", numbers, test)
        began = time.monotonic()
        for name in ("train", "test"):
            densefeat.extract(work / name, work / f"{name}-store", model=MODEL, labels="folder", device=device)
        results = probe(work / "train-store", work / "probe", test=work / "test-store").results
        for each in results["candidates"]:
            if each["name"] in (results["best"], "block3"):
                chosen = " (chosen)" if each["name"] == results["best"] else ""
                add(f"probe, {each['name']}{chosen}", began, each["test"]["top1"], *each["intervals"]["top1"])
        # crops of images of no more pixels than the network reads are blurred
        small = ["loader=device", "augment=shift-mirror"]
        for name, overrides in (("head", ["mode=head"]), ("defaults", []), ("shifts, no crops", small)):
            began = time.monotonic()
            train = f"train={json.dumps(str(work / 'train'))}"
            finetune(load_finetuning("finetune_folder", [f"model={MODEL}", train, *overrides]), work / name, device)
            scores = evaluate(str(work / name), str(work / "test"), device=device).to_json()
            mean, count = scores["top1"], scores["images"]
            half = 196 * (mean / 100 * (1 - mean / 100) / (count - 1)) ** 0.5
            add(f"finetune, {name}", began, mean, mean - half, mean + half)
    report.add("probe and fine-tune", rows, "=what | test top-1, %=top1:.1f | 95 %=interval | seconds=seconds:.0f")


if __name__ == "__main__":
    main()
