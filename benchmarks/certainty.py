"""Do probes keep their promises? Calibration, sets, risk, and how well outliers are told.

    python benchmarks/certainty.py promises --data DATA
    python benchmarks/certainty.py outliers --data DATA

DATA has cifar10-train.parquet and cifar10-test.parquet and, for more rows of the tables, other sets of images: tables of the
same layout and folders, see SETS. The network is the bundled one, 32×32, with all of its blocks.
"""

import io
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from sklearn.metrics import roc_auc_score

import densefeat
from densefeat.bench import Report, benchmark_options
from densefeat.certainty import fit_certainty, fit_outliers, measure_calibration
from densefeat.errors import UsageError
from densefeat.labels import Targets, hold_out
from densefeat.probing import fit_head

MODEL = "densefeat_densenet_bc100_k12"
SETS = {
    "CIFAR-10": ("cifar10-train.parquet", "cifar10-test.parquet"),
    "sign digits": ("sign-digits.parquet",),
    "clothes": ("clothing-train.parquet", "clothing-test.parquet"),
    "Tiny ImageNet": ("tinyimagenet32-val.parquet",),
    "tiles": ("tiles",),
    "nuclei": ("nuclei/images",),
}
LABELLED = ("CIFAR-10", "sign digits", "clothes")
PROTOCOLS = ("logreg", "knn", "ridge")
LEVEL, RISK, REFITS = 0.95, 0.05, 5
SUFFIXES = {".png", ".jpg", ".jpeg"}
data_option = click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
rows_option = click.option("--rows", type=click.IntRange(20), default=3000, show_default=True, help="Of a table, at most.")


@click.group()
def main() -> None:
    """Measure and print."""


def read_images(path: Path, rows: int) -> tuple[list[Image.Image], np.ndarray]:
    """Read images and labels (of a folder, zeros) from the first rows of a table, or the first files of a folder."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.parent.name != "masks")
        return [Image.open(file).convert("RGB") for file in files[:rows]], np.zeros(len(files[:rows]), np.int64)
    table = pq.read_table(path).slice(0, rows)
    encoded = [image["bytes"] for image in table["image"].to_pylist()]
    return [Image.open(io.BytesIO(image)).convert("RGB") for image in encoded], table["label"].to_numpy()


def embed(data: Path, name: str, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return features by block, labels, and which rows are to learn from: the first file, or three fifths of an only one."""
    extractor = densefeat.FeatureExtractor(MODEL, device="cpu")
    parts = [read_images(data / file, rows) for file in SETS[name]]
    features = {key: value.numpy() for key, value in extractor([image for images, _ in parts for image in images]).items()}
    labels = np.concatenate([labels for _, labels in parts])
    first = len(parts[0][0]) if len(parts) > 1 else 3 * len(labels) // 5
    return features, labels, np.arange(len(labels)) < first


def find_sets(data: Path, names: Any) -> list[str]:
    return [name for name in names if all((data / file).exists() for file in SETS[name])]


# ---------------------------------------------------------------- promises


def keep_promises(targets: Targets, scores: np.ndarray, resplits: int) -> dict[str, float]:
    """Divide rows that a head did not see into a third for validation and two to test, again and again."""
    generator, rows = np.random.default_rng(0), []
    for _ in range(resplits):
        val = np.zeros(len(targets), bool)
        val[generator.permutation(len(targets))[: len(targets) // 3]] = True
        rows.append(measure_split(targets.take(val), scores[val], targets.take(~val), scores[~val]))
    return summarize(rows)


def measure_split(val: Targets, val_scores: np.ndarray, test: Targets, scores: np.ndarray) -> dict[str, float]:
    certainty = fit_certainty(val, val_scores)
    before, after = measure_calibration(test, scores), measure_calibration(test, scores, certainty.temperature)
    row = {"temperature": certainty.temperature}
    row |= {f"{name} {when}": values[name] for when, values in (("before", before), ("after", after)) for name in values}
    members = certainty.choose_sets(scores, LEVEL)
    row |= {"coverage": members[np.arange(len(test)), test.values].mean(), "size": members.sum(1).mean()}
    try:
        answered = certainty.choose_answers(scores, RISK)
    except UsageError:
        return row | {"refused": 1.0, "kept": 1.0}
    wrong = (scores.argmax(1) != test.values)[answered]
    row |= {"refused": 0.0, "answered": answered.mean(), "wrong": wrong.mean() if len(wrong) else 0.0}
    return row | {"kept": float(not len(wrong) or wrong.mean() <= RISK)}


def summarize(rows: list[dict[str, float]]) -> dict[str, float]:
    """Average over splits; ``wrong`` and ``answered`` over those in which the risk was promised."""
    names = dict.fromkeys(name for row in rows for name in row)
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
    return {name: 100 * mean if name in ("coverage", "refused", "answered", "wrong", "kept") else mean
            for name, mean in means.items()}  # fmt: skip


def refit_and_measure(x: np.ndarray, y: Targets, protocol: str, seed: int) -> dict[str, float]:
    """Hold out two fifths of all rows to test and, of the others, a fifth for validation; then fit again on all of these."""
    test = hold_out(y, 0.4, seed)
    val = hold_out(y.take(~test), 0.2, seed + 1)
    fit = fit_head(protocol, x[~test].copy(), y.take(~test), val)
    return measure_split(y.take(~test).take(val), fit.val_scores, y.take(test), fit.head.scores(x[test]))


COLUMNS = (
    "set=set: | protocol=protocol: | T=temperature:.2f | ECE=ece before:.3f | after=ece after:.3f | Brier=brier before:.3f"
    " | after=brier after:.3f | log loss=log_loss before:.3f | after=log_loss after:.3f | sets hold, %=coverage:.1f"
    " | size=size:.2f | risk refused, %=refused:.0f | answered, %=answered:.1f | wrong, %=wrong:.2f | kept, %=kept:.1f"
)


@main.command()
@data_option
@rows_option
@click.option("--resplits", type=click.IntRange(2), default=1000, show_default=True)
@click.option("--refits", type=click.IntRange(1), default=REFITS, show_default=True)
@benchmark_options()
def promises(data: Path, rows: int, resplits: int, refits: int, file: Path | None) -> None:
    """Measure calibration before and after, sets of 95 % and a risk of 5 %, over splits of validation and test rows.

    First with one head that saw neither, which is what the promises are about; then with everything fitted anew for each split,
    and the head fitted again with the validation rows, as a probe does. "kept": splits in which the risk was refused, or no
    more of the answers to the test rows were wrong than promised.
    """
    report = Report(f"sets of {100 * LEVEL:g} %, a risk of {100 * RISK:g} %; features of all blocks side by side", file)
    fixed, refitted = [], []
    for name in find_sets(data, LABELLED):
        features, labels, train = embed(data, name, rows)
        x = np.concatenate(list(features.values()), axis=1)
        codes = np.unique(labels, return_inverse=True)[1].astype(np.int64)
        targets = Targets("single", tuple(map(str, range(codes.max() + 1))), codes)
        for protocol in PROTOCOLS:
            val = hold_out(targets.take(train), 0.2, 0)
            head = fit_head(protocol, x[train].copy(), targets.take(train), val).head
            row = {"set": name, "protocol": protocol}
            fixed.append(row | keep_promises(targets.take(~train), head.scores(x[~train]), resplits))
            refitted.append(row | summarize([refit_and_measure(x, targets, protocol, seed) for seed in range(refits)]))
    report.add(f"one head, {resplits:,} splits of the rows that it did not see", fixed, COLUMNS)
    report.add(f"fitted again on all rows but the test rows, {refits} splits", refitted, COLUMNS)


# ---------------------------------------------------------------- outliers


@main.command()
@data_option
@rows_option
@benchmark_options()
def outliers(data: Path, rows: int, file: Path | None) -> None:
    """Measure the AUROC of every block, distance and combination for sets of images against each other.

    The detector is fitted on the training rows of a set, and tells its other rows from all rows of another set.
    """
    report = Report("AUROC of outliers; M: Mahalanobis distance, N: to the 10th neighbour", file)
    embedded = {name: embed(data, name, rows) for name in find_sets(data, SETS)}
    table: list[dict[str, Any]] = []
    for known in find_sets(data, LABELLED):
        features, labels, train = embedded[known]
        own = {name: values[~train] for name, values in features.items()}
        detector = fit_outliers(((name, values[train]) for name, values in features.items()), labels[train])
        usual = detector.scores(own)
        for other, (others, _, _) in embedded.items():
            if other != known:
                table.append({"learnt": known, "other": other} | compare(usual, detector.scores(others), list(features)))
    blocks = " | ".join(f"{name} {kind}={name} {kind}:.3f" for name in features for kind in "MN")
    report.add("outliers", table, f"learnt=learnt: | against=other: | {blocks} | all M=M:.3f | all N=N:.3f | all=all:.3f")


def compare(usual: np.ndarray, strange: np.ndarray, blocks: list[str]) -> dict[str, float]:
    """Compute the AUROC of single scores and of their means from scores ``(n, blocks, 2)``."""
    truth = np.repeat([0, 1], [len(usual), len(strange)])
    both = np.concatenate([usual, strange])
    row = {f"{name} {kind}": both[:, place, k] for place, name in enumerate(blocks) for k, kind in enumerate("MN")}
    row |= {"M": both[..., 0].mean(1), "N": both[..., 1].mean(1), "all": both.mean((1, 2))}
    return {name: float(roc_auc_score(truth, scores)) for name, scores in row.items()}


if __name__ == "__main__":
    main()
