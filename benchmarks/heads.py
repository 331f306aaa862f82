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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
from densefeat.bench import Report, benchmark_options, measure_rounds, rate_rows, read_peak, reset_peak, run_alone
from densefeat.heads import CrossLayerHead

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

    from densefeat.labels import Targets
    from densefeat.probe import fit_head

    warnings.simplefilter("ignore")  # scikit-learn's, about fits that have not converged
    x, y = make_rows(2 * rows, features, classes)
    test, x = x[rows:], x[:rows]
    val = np.random.default_rng(1).permutation(rows) < rows // 10
    size = x.nbytes
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
    return spent | {"C": float(np.log10(chosen)), "accuracy": accuracy, "peak": 1 + (read_peak() - before) / size}


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
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    variables = dict.fromkeys(names, str(threads)) | {"OMP_WAIT_POLICY": "passive"}
    works = {arm: partial(run_alone, fit_one, arm, rows, features, classes, variables=variables) for arm in arms}
    report = Report(f"{rows:,} rows, {features} features, {classes} classes, {len(C)} values of C, threads: {threads}", file)
    results = measure_rounds(works, rounds, warmups=0)
    table = rate_rows({arm: [each["cpu"] for each in own] for arm, own in results.items()}, dict.fromkeys(arms, arms[-1]))
    for row in table:
        row |= {key: float(np.median([each[key] for each in results[row["arm"]]])) for key in ("wall", "C", "accuracy", "peak")}
        row["times"] = row["seconds"] / table[0]["seconds"]
    columns = {"arm": ("", "{}"), "seconds": ("CPU seconds", "{:.2f}"), "times": ("times densefeat's", "{:.1f}"),
               "wall": ("seconds", "{:.2f}"), "C": ("C", "10^{:.2f}"), "accuracy": ("test accuracy", "{:.2f}"),
               "peak": ("peak to features", "{:.2f}")}  # fmt: skip
    report.add("logistic regression", table, columns)


# ---------------------------------------------------------------- cross-layer


def read_table(data: Path, name: str) -> tuple[list[bytes], np.ndarray]:
    """Encoded images and labels of ``cifar10-NAME.parquet``."""
    table = pq.read_table(data / f"cifar10-{name}.parquet")
    return [image["bytes"] for image in table["image"].to_pylist()], table["label"].to_numpy()


class Linear(nn.Module):
    """A linear layer on pooled features ``(N, C, 1, 1)`` that it standardises by the statistics of training."""

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(sum(channels), affine=False)
        self.classifier = nn.Linear(sum(channels), num_classes)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.classifier(self.norm(torch.cat(maps, 1)).flatten(1))


class SideBySide(nn.Module):
    """A 1×1 convolution of all maps to ``width`` channels, BatchNorm, ReLU, pooling, linear."""

    def __init__(self, channels: list[int], width: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(sum(channels), width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.classifier(F.relu(self.norm(self.project(torch.cat(maps, 1)))).mean((2, 3)))


Maker = Callable[[list[int]], nn.Module]  # from the channels of each block


def list_heads(width: int, num_classes: int) -> dict[str, tuple[Maker, bool]]:
    """By name, what makes a head, and whether it reads all blocks."""
    return {
        "linear, last block": (lambda channels: Linear(channels, num_classes), False),
        "linear, all blocks": (lambda channels: Linear(channels, num_classes), True),
        "1×1, last block": (lambda channels: SideBySide(channels, width, num_classes), False),
        "1×1, all blocks": (lambda channels: SideBySide(channels, width, num_classes), True),
        "cross-layer": (lambda channels: CrossLayerHead([dict(num_chs=each) for each in channels], width, num_classes), True),
    }


Maps = list[np.ndarray]  # of each block float16 (n, C, 8, 8)


def write_maps(extractor: densefeat.FeatureExtractor, images: list[bytes], folder: Path) -> Maps:
    """Each block's maps, averaged down to the last block's 8×8, in files."""
    folder.mkdir()
    maps: Maps = []
    for start in range(0, len(images), 64):
        some = [Image.open(io.BytesIO(data)).convert("RGB") for data in images[start : start + 64]]
        for block, values in enumerate(extractor.forward(extractor.prepare(some)).values()):
            pooled = F.adaptive_avg_pool2d(values, MAP).half().numpy()
            if start == 0:
                maps.append(np.memmap(folder / str(block), np.float16, "w+", shape=(len(images), *pooled.shape[1:])))
            maps[block][start : start + len(some)] = pooled
    return maps


def read_maps(maps: Maps, rows: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(block[rows]).float() for block in maps]


def train_head(
    make: Maker, maps: Maps, labels: torch.Tensor, rows: np.ndarray, rate: float, epochs: int, seed: int
) -> nn.Module:
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    head = make([block.shape[1] for block in maps]).train()
    optimizer = create_optimizer_v2(head, "adamw", lr=rate, weight_decay=WEIGHT_DECAY)
    batch = min(BATCH, len(rows))
    steps = len(rows) // batch
    schedule = CosineLRScheduler(optimizer, epochs * steps, t_in_epochs=False)
    for epoch in range(epochs):
        order = generator.permutation(rows)
        for step in range(steps):
            schedule.step_update(epoch * steps + step)
            some = order[step * batch : (step + 1) * batch]
            loss = F.cross_entropy(head(read_maps(maps, some)), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head.eval()


@torch.inference_mode()
def hits(head: nn.Module, maps: Maps, labels: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    """bool ``(n,)``: whether the head is right on each image."""
    parts = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    return np.concatenate([(head(read_maps(maps, part)).argmax(1) == labels[part]).numpy() for part in parts])


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
    from densefeat.heads.usage_chart import draw_usage

    out.mkdir(parents=True, exist_ok=True)
    extractor = densefeat.FeatureExtractor(MODEL, pool="none", device="cpu")
    images, codes = read_table(data, "train")
    chosen = np.random.default_rng(0).permutation(len(images))[:rows]
    labels = torch.from_numpy(codes[chosen])
    test_images, test_codes = read_table(data, "test")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        train = write_maps(extractor, [images[i] for i in chosen], Path(folder, "train"))
        test = write_maps(extractor, test_images, Path(folder, "test"))
        size = sum(block.nbytes for block in (*train, *test))
        report = Report(
            f"{len(labels):,} training and {len(test_codes):,} test images, {epochs} epochs, maps: {size:,} bytes", file
        )
        order = np.random.default_rng(1).permutation(len(labels))
        held, rest = order[: len(order) // 10], order[len(order) // 10 :]
        for name, (make, every) in list_heads(width, int(codes.max()) + 1).items():
            own, own_test = (train, test) if every else (train[-1:], test[-1:])
            if name.startswith("linear"):  # it reads pooled features
                own, own_test = ([block.mean((2, 3), np.float32, keepdims=True) for block in maps] for maps in (own, own_test))
            fit = partial(train_head, make, own, labels)
            scores = [hits(fit(rest, rate, epochs, 0), own, labels, held).mean() for rate in RATES]
            rate, right, began = RATES[int(np.argmax(scores))], [], time.perf_counter()
            for seed in range(seeds):
                head = fit(order, rate, epochs, seed)
                right.append(hits(head, own_test, torch.from_numpy(test_codes), np.arange(len(test_codes))))
            scores = [100 * each.mean() for each in right]
            results[name] = {
                "head": name, "hits": np.mean(right, 0), "seeds": f"{min(scores):.2f} to {max(scores):.2f}", "rate": rate,
                "seconds": (time.perf_counter() - began) / seeds,
                "parameters": sum(each.numel() for each in head.parameters()),
            }  # fmt: skip
    best = results["cross-layer"]["hits"]
    for name, row in results.items():
        own_hits = row.pop("hits")
        row["top1"] = "{:.2f} ± {:.2f}".format(*interval(own_hits))
        row["less"] = None if name == "cross-layer" else "{:+.2f} ± {:.2f}".format(*interval(best - own_hits))
    columns = {"head": ("head", "{}"), "top1": ("test top-1, %", "{}"), "seeds": ("seeds", "{}"),
               "less": ("cross-layer less it", "{}"), "parameters": ("parameters", "{:,}"), "rate": ("rate", "{:g}"),
               "seconds": ("seconds", "{:.1f}")}  # fmt: skip
    report.add("heads", list(results.values()), columns)
    usage = head.block_usage().numpy()  # type: ignore[operator]
    names = [tap.name for tap in extractor.taps]
    draw_usage(usage, names, out / "block_usage")
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(names, usage.mean(1), strict=True))
    report.note("block usage", usage.mean(1).tolist(), f"mean share of each block: {shares}; {out / 'block_usage.png'}")


# ---------------------------------------------------------------- finetune


def write_folder(data: Path, name: str, folder: Path, classes: list[int], count: int) -> None:
    """The first ``count`` images of each class, as files."""
    left = dict.fromkeys(classes, count)
    for number, (content, label) in enumerate(zip(*read_table(data, name), strict=True)):
        if left.get(label, 0):
            left[label] -= 1
            file = folder / f"class {label}" / f"{number:06}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def run_probe(work: Path, device: str) -> list[dict[str, Any]]:
    """Block 3 and the best candidate; the time of block 3 is that of extraction alone."""
    from densefeat.probe import probe

    began = time.monotonic()
    for name in ("train", "test"):
        densefeat.extract(work / name, work / f"{name}-store", model=MODEL, labels="folder", device=device)
    extracted = time.monotonic() - began
    results = probe(work / "train-store", work / "probe", test=work / "test-store").results
    rows = []
    for each in results["candidates"]:
        best = each["name"] == results["best"]
        if best or each["name"] == "block3":
            rows.append({"what": f"probe, {each['name']}{' (chosen)' if best else ''}", "top1": each["test"]["top1"],
                         "interval": "{:.1f} to {:.1f}".format(*each["intervals"]["top1"]),
                         "seconds": time.monotonic() - began if best else extracted})  # fmt: skip
    return rows


def run_finetuning(work: Path, device: str, name: str, overrides: list[str]) -> dict[str, Any]:
    from densefeat.evaluation import predict
    from densefeat.finetuning import finetune, load_finetuning

    began = time.monotonic()
    recipe = load_finetuning("finetune_folder", [f"model={MODEL}", f"train={json.dumps(str(work / 'train'))}", *overrides])
    finetune(recipe, work / name, device)
    seconds = time.monotonic() - began
    table = predict(str(work / name), work / "test", work / f"{name} predictions", device=device).table
    lines = [line.split(",") for line in table.read_text().splitlines()[1:]]
    mean, half = interval(np.array([line[0].partition("/")[0] == line[-2] for line in lines]))
    return {
        "what": f"finetune, {name}",
        "top1": mean,
        "interval": f"{mean - half:.1f} to {mean + half:.1f}",
        "seconds": seconds,
    }


@main.command()
@data_option
@click.option("--classes", default="3,5", show_default=True, help="Numbers of the classes: cats and dogs of CIFAR-10.")
@click.option("--images", default=150, show_default=True, help="Of each class to learn from.")
@click.option("--test", default=500, show_default=True, help="Of each class to test on.")
@click.option("--device", default="cpu", show_default=True)
@benchmark_options()
def finetune(data: Path, classes: str, images: int, test: int, device: str, file: Path | None) -> None:
    """Fine-tuning beside a probe, from the same images: test accuracy with its 95 % interval, and seconds."""
    numbers = [int(number) for number in classes.split(",")]
    report = Report(f"{len(numbers)} classes, {images} images each; {device}", file, device)
    small = ["loader=device", "augment=shift-mirror"]  # crops of images of no more pixels than the network reads are blurred
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_folder(data, "train", work / "train", numbers, images)
        write_folder(data, "test", work / "test", numbers, test)
        rows = run_probe(work, device)
        for name, overrides in (("head", ["mode=head"]), ("defaults", []), ("shifts, no crops", small)):
            rows.append(run_finetuning(work, device, name, overrides))
    columns = {
        "what": ("", "{}"),
        "top1": ("test top-1, %", "{:.1f}"),
        "interval": ("95 %", "{}"),
        "seconds": ("seconds", "{:.0f}"),
    }
    report.add("probe and fine-tune", rows, columns)


if __name__ == "__main__":
    main()
