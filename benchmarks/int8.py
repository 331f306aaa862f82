"""What int8 gains and costs on a CPU: speed beside float32, cosines of blocks, and the accuracy of probes.

    pip install 'densefeat[int8]'
    python benchmarks/int8.py speed --data DATA
    python benchmarks/int8.py accuracy --data DATA
    python benchmarks/int8.py files --data DATA

DATA has cifar10-train.parquet, cifar10-test.parquet, clothing-train.parquet and clothing-test.parquet, in the datasets layout.
Both precisions are backend openvino's, of the same weights. Speed: both take turns on the same images, and ratios are of the
same round, by the process's CPU time too, which other programs on the machine do not lengthen as much. Accuracy: the bundled
network at 32 pixels, calibrated on 300 of the training images; ridge probes of its last block are fitted to the training images
and tested on the test images, and once more cross-validated on all of them, since one test set may be small. Intervals (95 %)
are of the difference on the same images, by its standard error.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from densefeat import FeatureExtractor
from densefeat.bench import Report, benchmark_options, calibrated_network, measure_rounds
from densefeat.export import export_model
from densefeat.export.formats import GRAPHS

BUNDLED = "densefeat_densenet_bc100_k12"
NETWORKS = {BUNDLED: (32, 64), "densefeat_densenet121": (224, 8)}  # pixels, images a call
CALIBRATED_ON, HELD_OUT = 300, 64
SETS = ("cifar10", "clothing")
FOLDS, DIVISIONS = 5, 3
SPEEDS = "network=network: | fp32, images/s=plain:.1f | int8, images/s=int8:.1f | ratio=wall | ratio of CPU time=cpu"
COSINES = "block=block: | median=median:.4f | least=least:.4f"
ACCURACIES = "probe=probe: | top-1 %=accuracy:.2f | to fp32, points=difference:+.2f | from=low:+.2f | to=high:+.2f"


def read_images(path: Path, count: int) -> tuple[list[Image.Image], np.ndarray]:
    """Read the first images of a table, and their labels ``(N,)``."""
    table = pq.read_table(path).slice(0, count)
    encoded = table["image"].combine_chunks().field("bytes").to_pylist()
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded], table["label"].to_numpy()


def make_extractors(model: str | nn.Module, size: int, images: list[Image.Image], held_out: list[Image.Image]) -> Any:
    """Make the extractors of both precisions; return them with a row of cosines for each block."""
    plain, int8 = (
        FeatureExtractor(model, precision=precision, image_size=size, device="cpu", backend="openvino")
        for precision in ("fp32", "int8")
    )
    int8.calibrate(images)
    cosines = int8.compare_to_float32(held_out)
    rows = [{"block": name, "median": float(c.median()), "least": float(c.min())} for name, c in cosines.items()]
    return plain, int8, rows


def time_both(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call, by the clock and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare_seconds(plain: list[float], int8: list[float]) -> dict[str, float]:
    ratios = [slow / fast for slow, fast in zip(plain, int8, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


@click.group()
def main() -> None:
    """Measure and print."""


@main.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@benchmark_options()
def speed(data: Path, rounds: int, file: Path | None) -> None:
    """The bundled network at 32², and DenseNet-121 with random weights at 224²."""
    report = Report(f"int8 beside float32 by OpenVINO, {torch.get_num_threads()} threads, {rounds} rounds", file)
    rows = []
    for name, (size, batch) in NETWORKS.items():
        images, _ = read_images(data / "clothing-train.parquet", 64 + HELD_OUT)
        model: Any = name if name == BUNDLED else calibrated_network(name)
        plain, int8, _ = make_extractors(model, size, images[:64], images[64:])
        x = plain.prepare(images[:batch])
        arms = {"plain": lambda x=x, e=plain: time_both(lambda: e(x)), "int8": lambda x=x, e=int8: time_both(lambda: e(x))}
        seconds = measure_rounds(arms, rounds, warmups=2)
        wall, cpu = ({arm: [pair[i] for pair in pairs] for arm, pairs in seconds.items()} for i in (0, 1))
        row: dict[str, Any] = {arm: batch / statistics.median(own) for arm, own in wall.items()}
        rows.append(row | {"network": f"{name}, {size}², batch {batch}"}
                    | {"wall": compare_seconds(**wall), "cpu": compare_seconds(**cpu)})  # fmt: skip
    report.add("speed", rows, SPEEDS)


@main.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@benchmark_options()
def files(data: Path, rounds: int, file: Path | None) -> None:
    """The same networks as files that `densefeat export` writes, in the files' own runtimes, image by image."""
    report = Report(f"exported files in int8 beside float32, one image a call, {rounds} rounds", file)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "images")
        place.mkdir()
        for number, image in enumerate(read_images(data / "clothing-train.parquet", 64 + HELD_OUT)[0]):
            image.save(place / f"{number:03}.png")
        for (name, (size, _)), (to, suffix) in product(NETWORKS.items(), (("onnx", "onnx"), ("openvino", "xml"))):
            model: Any = name if name == BUNDLED else calibrated_network(name)
            runs = {}
            for arm, options in (("plain", {}), ("int8", dict(int8=True, calibration=place, min_cosine=0.9))):
                path = Path(folder, f"{name}-{arm}.{suffix}")
                exported = export_model(model, to, path, image_size=size, **options)
                runs[arm] = GRAPHS[to].open(path)[1]
            x = torch.randn(1, 3, size, size)
            seconds = measure_rounds({arm: partial(time_both, partial(run, x)) for arm, run in runs.items()}, rounds, warmups=2)
            wall, cpu = ({arm: [pair[i] for pair in pairs] for arm, pairs in seconds.items()} for i in (0, 1))
            row: dict[str, Any] = {arm: 1 / statistics.median(own) for arm, own in wall.items()}
            last, (median, least) = list((exported.cosines or {}).items())[-1]
            rows.append(row | {"network": f"{name}, {size}², {to}", "last": f"{last} {median:.4f} ({least:.4f})"}
                        | {"wall": compare_seconds(**wall), "cpu": compare_seconds(**cpu)})  # fmt: skip
    report.add("files", rows, f"{SPEEDS} | cosine=last:")


@main.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--train", type=click.IntRange(400), default=2000, show_default=True, help="Images to learn from, at most.")
@click.option("--test", type=click.IntRange(100), default=10000, show_default=True, help="Images to test on, at most.")
@benchmark_options()
def accuracy(data: Path, train: int, test: int, file: Path | None) -> None:
    """Cosines of blocks, and probes on the last of them."""
    report = Report("probes of the bundled network's last block in float32 and in int8", file)
    for name in SETS:
        images, labels = read_images(data / f"{name}-train.parquet", train)
        tests, answers = read_images(data / f"{name}-test.parquet", test)
        chosen = np.linspace(0, len(images) - 1, CALIBRATED_ON).round().astype(int)
        held_out = np.setdiff1d(np.arange(len(images)), chosen)[:: (len(images) - CALIBRATED_ON) // HELD_OUT][:HELD_OUT]
        plain, int8, cosines = make_extractors(BUNDLED, 32, [images[i] for i in chosen], [images[i] for i in held_out])
        report.add(f"{name}: cosine to float32 on {len(held_out)} images that were held out", cosines, COSINES)
        last = cosines[-1]["block"]
        features = [(e(images)[last].numpy(), e(tests)[last].numpy()) for e in (plain, int8)]
        rows = compare_probes(*features, labels, answers)
        report.add(f"{name}: {len(images):,} training and {len(tests):,} test images", rows, ACCURACIES)
        rows = cross_validate(*features, np.concatenate([labels, answers]))
        report.add(f"{name}: all of these in {FOLDS} folds, {DIVISIONS} times", rows, ACCURACIES)


def compare_probes(
    plain: tuple[np.ndarray, np.ndarray], int8: tuple[np.ndarray, np.ndarray], labels: np.ndarray, answers: np.ndarray
) -> list[dict[str, Any]]:
    """Return a row for each way to fit and to test; features are those of the training and of the test images."""
    ways = {
        "fitted and tested in fp32": (plain[0], plain[1]),
        "fitted and tested in int8": (int8[0], int8[1]),
        "fitted in int8, tested in fp32": (int8[0], plain[1]),
    }
    right = {
        name: (make_probe().fit(fitted, labels).predict(tested) == answers).astype(float)
        for name, (fitted, tested) in ways.items()
    }
    return describe_accuracies(right)


def cross_validate(
    plain: tuple[np.ndarray, np.ndarray], int8: tuple[np.ndarray, np.ndarray], labels: np.ndarray
) -> list[dict[str, Any]]:
    """Return a row for each precision: all images, each tested by a probe of the others, in several divisions into folds."""
    right = {"fp32": np.zeros(len(labels)), "int8": np.zeros(len(labels))}
    for seed in range(DIVISIONS):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        for name, features in (("fp32", np.concatenate(plain)), ("int8", np.concatenate(int8))):
            right[name] += (cross_val_predict(make_probe(), features, labels, cv=folds) == labels) / DIVISIONS
    return describe_accuracies(right)


def describe_accuracies(right: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a row for each probe, compared with the first. ``right``: by image, the share of its answers that are right."""
    base = next(iter(right.values()))
    rows = []
    for name, own in right.items():
        difference = 100 * (own - base)
        mean, error = float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)
        interval = {} if own is base else {"difference": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}
        rows.append({"probe": name, "accuracy": 100 * float(own.mean()), **interval})
    return rows


def make_probe() -> Any:
    return make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(0, 5, 6)))


if __name__ == "__main__":
    main()
