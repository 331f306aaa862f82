"""Which way to use a network's blocks wins where: linear, attentive and selected features, the cross-layer head, fine-tuning.

    python benchmarks/protocols.py --data DATA --out OUT
    python benchmarks/protocols.py --data DATA --out OUT --sets tiles --ways linear,attentive

DATA has cifar10-train.parquet, cifar10-test.parquet, clothing-train.parquet, clothing-test.parquet and sign-digits.parquet, in
the datasets layout, and the folder tiles with train/good and test/CLASS. All ways learn from the same training images, choose
by the same validation images, and are tested on the same test images, in OUT/SET/images. The network is the bundled one, at
32 pixels. OUT/results.jsonl has a line for each way and data set: the same command goes on with those that are missing.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from scipy.stats import binomtest

import densefeat
from densefeat.bench import Report, benchmark_options
from densefeat.evaluation import evaluate
from densefeat.finetuning import finetune, load_finetuning
from densefeat.labels import TEST
from densefeat.probing import fit_head, load_data, probe
from densefeat.sgd_probe import probe_images

MODEL = "densefeat_densenet_bc100_k12"
RECIPE = Path(__file__).resolve().parents[1] / "recipes/finetune_folder.yaml"
PARTS = ("train", "val", "test")
VAL_SHARE, TEST_SHARE = 0.2, 0.4  # of the images to learn from; of all images, where a data set has no test images of its own
SETS = ("cifar10", "clothing", "sign-digits", "tiles")
SMALL = ("cifar10",)  # images of no more pixels than the network reads, which crops would blur
DEVICE, BATCH = "cpu", 32

Example = tuple[bytes, str]  # encoded image, class
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What all cells of the table share. ``images``: to learn from and choose by; ``test``: at most."""

    data: Path
    out: Path
    images: int
    test: int
    epochs: int
    finetune_epochs: int

    def settings(self) -> Row:
        return {name: getattr(self, name) for name in ("images", "test", "epochs", "finetune_epochs")}


# ---------------------------------------------------------------- data


def read_table(path: Path) -> list[Example]:
    table = pq.read_table(path)
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    images = table["image"].combine_chunks().field("bytes").to_pylist()
    return [(data, names[label]) for data, label in zip(images, table["label"].to_pylist(), strict=True)]


def read_examples(data: Path, name: str) -> tuple[list[Example], list[Example]]:
    """Return all images to learn from and those to test on; none to test on where the data set does not say."""
    if name == "tiles":
        files = sorted(path for part in ("train", "test") for path in (data / name / part).glob("*/*") if path.is_file())
        return [(path.read_bytes(), path.parent.name) for path in files], []
    if (data / f"{name}.parquet").exists():
        return read_table(data / f"{name}.parquet"), []
    return read_table(data / f"{name}-train.parquet"), read_table(data / f"{name}-test.parquet")


def draw(examples: list[Example], count: int, seed: int, leave: int = 1) -> tuple[list[Example], list[Example]]:
    """Draw about ``count`` examples, of each class its share, but ``leave`` at least; return them and the rest."""
    order = np.random.default_rng(seed).permutation(len(examples))
    by_class: dict[str, list[int]] = {}
    for place in order.tolist():
        by_class.setdefault(examples[place][1], []).append(place)
    share, chosen = min(1, count / len(examples)), set[int]()
    for places in by_class.values():
        chosen.update(places[: min(max(1, round(share * len(places))), len(places) - leave)])
    return [examples[i] for i in sorted(chosen)], [each for i, each in enumerate(examples) if i not in chosen]


def write_images(plan: Plan, name: str, folder: Path) -> None:
    """Write train/, val/ and test/ of classes; a folder that is there is complete."""
    if folder.exists():
        return
    learn, test = read_examples(plan.data, name)
    if not test:
        test, learn = draw(learn, min(plan.test, round(TEST_SHARE * len(learn))), 0)
    learn, _ = draw(learn, plan.images, 1, leave=0)
    val, train = draw(learn, round(VAL_SHARE * len(learn)), 2)
    test, _ = draw(test, plan.test, 3, leave=0)
    beside = folder.with_name("images-unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    for part, examples in zip(PARTS, (train, val, test), strict=True):
        for number, (encoded, label) in enumerate(examples):
            place = beside / part / label
            place.mkdir(parents=True, exist_ok=True)
            kind = str(Image.open(io.BytesIO(encoded)).format).lower()
            (place / f"{number:05}.{kind}").write_bytes(encoded)
    beside.rename(folder)


# ---------------------------------------------------------------- ways


def cpu_seconds() -> float:
    """The processor time of this process and of children that have ended."""
    return sum(os.times()[:4])


def count_right(top1: float, images: int) -> int:
    return round(top1 / 100 * images)


def fit_linear(plan: Plan, name: str, images: Path, work: Path) -> Iterator[Row]:  # noqa: ARG001  as the other ways
    """Logistic regression on the last block and on all: DINOv2's grid, chosen on validation rows, then fitted on these too."""
    began = cpu_seconds()
    densefeat.extract(images, work / "store", MODEL, labels="folder", device=DEVICE)
    extracted = cpu_seconds() - began
    data = load_data([densefeat.open_store(work / "store")])
    targets, fitting = data.labelled.targets, data.parts != TEST
    every = tuple(data.columns.widths)
    for what, columns in (("last block, linear", every[-1:]), ("all blocks, linear", every)):
        began = cpu_seconds()
        x = data.columns.read(columns, data.labelled.rows[fitting])
        val = data.parts[fitting] == 1
        head = fit_head("logreg", x, targets.take(fitting), val).head
        scores = head.scores(data.columns.read(columns, data.labelled.rows[~fitting]))
        right = int(np.count_nonzero(scores.argmax(1) == targets.take(~fitting).values))
        yield {"way": what, "right": right, "of": len(scores), "cpu": extracted + cpu_seconds() - began}


def list_candidates(results: Row, names: dict[str, str], cpu: float) -> Iterator[Row]:
    """Yield a row for each candidate of a probe that ``names`` names."""
    tested = results["rows"]["test"]
    for each in results["candidates"]:
        if each["name"] in names:
            right = count_right(each["test"]["top1"], tested)
            yield {"way": names[each["name"]], "right": right, "of": tested, "cpu": cpu}


def train_attentive(plan: Plan, name: str, images: Path, work: Path) -> Iterator[Row]:  # noqa: ARG001
    """All heads of the protocol in one run, whose time each row has."""
    began = cpu_seconds()
    probed = probe_images(
        images, work / "probe", protocol="attentive", model=MODEL, labels="folder", epochs=plan.epochs, batch_size=BATCH,
        workers=0, device=DEVICE,
    )  # fmt: skip
    names = {
        "block3": "last block, linear by SGD", "all": "all blocks, linear by SGD",
        "block3 attentive": "last block, attentive", "all attentive": "all blocks, attentive",
    }  # fmt: skip
    yield from list_candidates(probed.results, names, cpu_seconds() - began)


def select_layers(plan: Plan, name: str, images: Path, work: Path) -> Iterator[Row]:  # noqa: ARG001
    """Head2Toe's selection of features of all layers, from the raw outputs of the blocks."""
    began = cpu_seconds()
    densefeat.extract(images, work / "store", MODEL, labels="folder", tap="raw", device=DEVICE)
    results = probe(work / "store", work / "probe", protocol="layers").results
    yield from list_candidates(results, {results["best"]: "layers (Head2Toe)"}, cpu_seconds() - began)


def fine_tune(plan: Plan, name: str, images: Path, work: Path, what: str, *overrides: str) -> Iterator[Row]:
    began = cpu_seconds()
    small = ["loader=device", "augment=shift-mirror"] if name in SMALL else ["workers=0"]
    parts = [f"{part}={json.dumps(str(images / part))}" for part in ("train", "val")]
    given = [f"model={MODEL}", *parts, *small, f"epochs={plan.finetune_epochs}", *overrides]
    finetune(load_finetuning(str(RECIPE), given), work / "run", DEVICE)
    scores = evaluate(str(work / "run"), str(images / "test"), device=DEVICE).to_json()
    right = count_right(scores["top1"], scores["images"])
    yield {"way": what, "right": right, "of": scores["images"], "cpu": cpu_seconds() - began}


def train_cross_layer(plan: Plan, name: str, images: Path, work: Path) -> Iterator[Row]:
    return fine_tune(plan, name, images, work, "cross-layer head", "mode=head", "head=cross-layer", "lr=0.003")


def train_all(plan: Plan, name: str, images: Path, work: Path) -> Iterator[Row]:
    return fine_tune(plan, name, images, work, "fine-tuning")


WAYS: dict[str, Callable[[Plan, str, Path, Path], Iterator[Row]]] = {
    "linear": fit_linear,
    "attentive": train_attentive,
    "layers": select_layers,
    "cross-layer": train_cross_layer,
    "fine-tuning": train_all,
}


# ---------------------------------------------------------------- table


def interval(right: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in per cent."""
    ends = binomtest(right, of).proportion_ci(method="wilson")
    return 100 * ends.low, 100 * ends.high


def run_cell(plan: Plan, name: str, way: str) -> Row:
    folder = plan.out / name
    folder.mkdir(parents=True, exist_ok=True)
    write_images(plan, name, folder / "images")
    work = folder / way
    shutil.rmtree(work, ignore_errors=True)  # of an interrupted cell, whose time would be lost
    work.mkdir()
    return {"set": name, "cell": way, "settings": plan.settings(), "rows": list(WAYS[way](plan, name, folder / "images", work))}


def read_done(file: Path, settings: Row) -> list[Row]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in map(json.loads, lines) if line["settings"] == settings]


def split_names(text: str, known: tuple[str, ...]) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"{unknown[0]!r}: choose of {', '.join(known)}")
    return names


def print_table(report: Report, sets: list[str], done: list[Row]) -> None:
    for name in sets:
        rows = [row for line in done if line["set"] == name for row in line["rows"]]
        for row in rows:
            low, high = interval(row["right"], row["of"])
            row |= {"top1": 100 * row["right"] / row["of"], "interval": f"{low:.1f} to {high:.1f}", "minutes": row["cpu"] / 60}
        if rows:
            report.add(name, rows, "=way | test images=of | top-1, %=top1:.1f | 95 %=interval | CPU minutes=minutes:.1f")


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="For images, probes and results.")
@click.option("--sets", default=",".join(SETS), show_default=True, help="Data sets.")
@click.option("--ways", default=",".join(WAYS), show_default=True)
@click.option("--images", default=600, show_default=True, help="Of each data set, to learn from and choose by (a fifth).")
@click.option("--test", default=800, show_default=True, help="Of each data set, at most.")
@click.option("--epochs", default=15, show_default=True, help="Of the protocol attentive.")
@click.option("--finetune-epochs", default=6, show_default=True, help="Of fine-tuning and the cross-layer head.")
@benchmark_options()
def main(data: Path, out: Path, sets: str, ways: str, file: Path | None, **settings: int) -> None:
    """Run the cells of the table that are missing, one after another, and print it."""
    plan, names = Plan(data, out, **settings), split_names(sets, SETS)
    report = Report(f"ways to use {MODEL}, frozen or fine-tuned, at 32 pixels: {json.dumps(plan.settings())}", file)
    results = out / "results.jsonl"
    done = read_done(results, plan.settings())
    for name in names:
        for way in split_names(ways, tuple(WAYS)):
            if not any((line["set"], line["cell"]) == (name, way) for line in done):
                print(f"{name}: {way}", flush=True)
                done.append(run_cell(plan, name, way))
                with open(results, "a", encoding="utf-8") as lines:
                    lines.write(json.dumps(done[-1]) + "\n")
    print_table(report, names, done)


if __name__ == "__main__":
    main()
