"""CPU seconds of choosing C for a logistic regression, against scikit-learn's LogisticRegressionCV.

    python benchmarks/probe.py [--rows N ...] [--store DIR --column NAME] [--full]

Both go through the same 45 values of C, choose by accuracy on the same tenth of the rows held out, and fit again on all. Each
run is a process of its own with one thread; the variants take turns within each round. The table has medians over the rounds,
ratios to densefeat of the same round, the C chosen, and the accuracy on as many rows again that no fit has seen.

scikit-learn: lbfgs, at most 1000 iterations a fit; with tol 1e-4, its default, fits of large C end early; with 1e-6 they end
near the minimum, as densefeat's do (DINOv2 asks for 1e-12). Peak: memory at most, features included, over the features' size.
--full: densefeat alone, once, on all cores, with 50,000 rows of 1024 features and 100 classes.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import sklearn
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import PredefinedSplit

import densefeat
from densefeat.labels import Targets
from densefeat.probe import fit
from densefeat.probe.logreg import C

PIECE = 4096
VARIANTS = ("densefeat", "scikit-learn, tol 1e-6", "scikit-learn, tol 1e-4")


def made_up(rows: int, features: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Three clusters a class that overlap, variances that fall like 1/i, turned and cut off at zero as pooled features are.

    The centres are as far apart for any number of features.
    """
    generator = np.random.default_rng(0)
    y = generator.integers(0, classes, rows)
    centres = 4 * generator.normal(size=(classes, 1, features)) + 2.4 * generator.normal(size=(classes, 3, features))
    centres /= features**0.5
    turn = np.linalg.qr(generator.normal(size=(features, features)))[0] * 3
    turn *= np.arange(1, features + 1)[:, None] ** -0.5
    x = np.empty((rows, features), np.float32)
    for start in range(0, rows, PIECE):
        labels = y[start : start + PIECE]
        latent = centres[labels, generator.integers(0, 3, len(labels))] + generator.normal(size=(len(labels), features))
        x[start : start + PIECE] = np.maximum(latent @ turn + 0.3, 0)
    return x, y


def stored(path: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    store = densefeat.open_store(path)
    if store.labels is None:
        raise click.UsageError(f"{path} has no labels")
    labelled = np.flatnonzero(store.labels != np.array(None))
    order = np.random.default_rng(0).permutation(labelled)
    return store[column][order].astype(np.float32), np.unique(store.labels[order].astype(str), return_inverse=True)[1]


def run_one(variant: str, data: dict[str, Any]) -> dict[str, float]:
    """CPU and wall seconds, C, test accuracy, and peak memory over that of the features."""
    warnings.simplefilter("ignore")  # scikit-learn's about fits that have not converged
    before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x, y = stored(Path(data["store"]), data["column"]) if data["store"] else made_up(2 * data["rows"], *data["shape"])
    fitting = len(x) // 2
    test, x = x[fitting:], x[:fitting]
    val = np.random.default_rng(1).permutation(fitting) < fitting // 10
    size, rest = x.nbytes, test.nbytes
    cpu, wall = time.process_time(), time.perf_counter()
    if variant == "densefeat":
        names = tuple(map(str, range(int(y.max()) + 1)))
        found = fit("logreg", x, Targets("single", names, y[:fitting]), val)
        chosen, predict = found.chosen["C"], lambda rows: found.head.scores(rows).argmax(1)
    else:
        cv = PredefinedSplit(np.where(val, 0, -1))
        tolerance = float(variant.split()[-1])
        model = LogisticRegressionCV(
            Cs=list(C), cv=cv, tol=tolerance, max_iter=1000, scoring="accuracy", use_legacy_attributes=False
        ).fit(x, y[:fitting])
        chosen, predict = float(model.C_), model.predict
    told = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "C": chosen}
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - rest
    return told | {"accuracy": 100 * float((predict(test) == y[fitting:]).mean()), "peak": peak / size}


def child(variant: str, data: dict[str, Any], threads: int) -> dict[str, float]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads)) | {"OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, __file__, "--one", variant, "--data", json.dumps(data)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(ended.stdout)


def measure(data: dict[str, Any], rounds: int) -> dict[str, list[dict[str, float]]]:
    """The order turns round by round."""
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for i in range(rounds):
        for variant in VARIANTS[:: -1 if i % 2 else 1]:
            results[variant].append(child(variant, data, threads=1))
    return results


def print_table(results: dict[str, list[dict[str, float]]]) -> None:
    table = Table("variant", "CPU seconds", "times densefeat's (range)", "C", "test accuracy", "peak", box=None, pad_edge=False)
    for name, runs in results.items():
        ratios = [own["cpu"] / base["cpu"] for base, own in zip(results["densefeat"], runs, strict=True)]
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        chosen = f"10^{np.log10(median['C']):.2f}"
        table.add_row(name, f"{median['cpu']:.2f}", spread, chosen, f"{median['accuracy']:.2f}", f"{median['peak']:.1f}")
    Console(width=120).print(table)


@click.command()
@click.option("--rows", multiple=True, default=[5000], show_default=True, help="To fit on; of 256 features and 10 classes.")
@click.option("--features", default=256, show_default=True)
@click.option("--classes", default=10, show_default=True)
@click.option("--store", default="", help="A real store with labels instead: half of its rows to fit on, half to test.")
@click.option("--column", default="block3", show_default=True, help="Of the store.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--full", is_flag=True, help="densefeat alone: 50,000 rows, 1024 features, 100 classes, all cores.")
@click.option("--one", hidden=True)
@click.option("--data", hidden=True)
def main(
    rows: tuple[int, ...],
    features: int,
    classes: int,
    store: str,
    column: str,
    rounds: int,
    full: bool,
    one: str | None,
    data: str | None,
) -> None:
    """Measure and print."""
    if one is not None and data is not None:
        click.echo(json.dumps(run_one(one, json.loads(data))))
        return
    print(f"CPU {platform.machine()}, scikit-learn {sklearn.__version__}, numpy {np.__version__}, {len(C)} values of C")
    if full:
        cores = os.cpu_count() or 1
        told = child("densefeat", {"rows": 50_000, "shape": [1024, 100], "store": "", "column": ""}, threads=cores)
        print(
            f"50,000 x 1024, 100 classes, {cores} cores: {told['wall']:.0f} s ({told['cpu']:.0f} s of CPU), "
            f"C 10^{np.log10(told['C']):.2f}, test accuracy {told['accuracy']:.2f}, "
            f"peak memory {told['peak']:.2f} times the features"
        )
        return
    for count in (0,) if store else rows:
        print(f"{column} of {store}" if store else f"{count:,} rows, {features} features, {classes} classes")
        print_table(measure({"rows": count, "shape": [features, classes], "store": store, "column": column}, rounds))


if __name__ == "__main__":
    main()
