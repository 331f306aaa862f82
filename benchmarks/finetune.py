"""Fine-tuning against a probe, from the same images: how good, and how long it takes.

    python benchmarks/finetune.py --data DIR [--classes 3,5] [--images 150]

DIR has Parquet files in the datasets layout with ``train`` and ``test`` in their names. Of some classes, some images each are
written out as a folder; both learn from it, choose on a part of it that they hold out, and are tested on the same images.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import densefeat
from densefeat.evaluation import predict
from densefeat.labels import Targets
from densefeat.probe import probe
from densefeat.probe.intervals import bootstrap
from densefeat.training import load_finetuning, train

SMALL = ["loader=device", "augment=shift-mirror"]  # images of no more pixels than the network reads blur in crops
MODEL = "densefeat_densenet_bc100_k12"


def write_folder(table: Path, folder: Path, classes: list[int], count: int) -> None:
    """The first ``count`` images of each class, as files."""
    rows = pq.read_table(table)
    left = dict.fromkeys(classes, count)
    for number, (image, label) in enumerate(zip(rows["image"], rows["label"].to_pylist(), strict=True)):
        if left.get(label, 0):
            left[label] -= 1
            file = folder / f"class {label}" / f"{number:06}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image["bytes"].as_py())


def judged(predictions: Path) -> dict[str, Any]:
    """Top-1 of a run's predictions for a labelled folder, with its interval, per cent."""
    lines = [line.split(",") for line in predictions.read_text().splitlines()[1:]]
    right = np.array([line[0].partition("/")[0] == line[-2] for line in lines])
    scores = np.stack([~right, right], 1).astype(np.float32)  # as if it were one class: hit or miss
    targets = Targets("single", ("miss", "hit"), np.ones(len(right), np.int64))
    return {
        "top1": 100 * right.mean(),
        "interval": bootstrap(targets, scores)["top1"],
    }


def by_probe(work: Path, device: str) -> list[dict[str, Any]]:
    began = time.monotonic()
    for name in ("train", "test"):
        densefeat.extract(work / name, work / f"{name}-store", model=MODEL, labels="folder", device=device)
    extracted = time.monotonic() - began
    results = probe(work / "train-store", work / "probe", test=work / "test-store").results
    seconds = time.monotonic() - began
    shown = [candidate for candidate in results["candidates"] if candidate["name"] in ("block3", results["best"])]
    return [
        {
            "what": f"probe, {candidate['name']}" + (" (chosen)" if candidate["name"] == results["best"] else ""),
            "top1": candidate["test"]["top1"],
            "interval": candidate["intervals"]["top1"],
            "seconds": seconds if candidate["name"] == results["best"] else extracted,
        }
        for candidate in shown
    ]


def by_finetuning(work: Path, device: str, name: str, overrides: list[str]) -> dict[str, Any]:
    began = time.monotonic()
    recipe = load_finetuning("finetune_folder", [f"model={MODEL}", f"train={json.dumps(str(work / 'train'))}", *overrides])
    train(recipe, work / name, device)
    seconds = time.monotonic() - began
    found = judged(predict(str(work / name), work / "test", work / f"{name} predictions", device=device).table)
    return {"what": f"finetune, {name}", "seconds": seconds, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classes", default="3,5", help="numbers of the classes: cats and dogs of CIFAR-10")
    parser.add_argument("--images", type=int, default=150, help="of each class to learn from")
    parser.add_argument("--test", type=int, default=500, help="of each class to test on")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    classes = [int(number) for number in arguments.classes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, count in (("train", arguments.images), ("test", arguments.test)):
            (table,) = arguments.data.glob(f"cifar10*{name}*.parquet")
            write_folder(table, work / name, classes, count)
        rows = by_probe(work, arguments.device)
        rows.append(by_finetuning(work, arguments.device, "head", ["mode=head"]))
        rows.append(by_finetuning(work, arguments.device, "defaults", []))
        rows.append(by_finetuning(work, arguments.device, "shifts, no crops", SMALL))
    table = Table(title=f"{len(classes)} classes, {arguments.images} images each; {os.cpu_count()} cores, {arguments.device}")
    for column in ("", "test top-1 %", "95 %", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        low, high = row["interval"]
        table.add_row(row["what"], f"{row['top1']:.1f}", f"{low:.1f} to {high:.1f}", f"{row['seconds']:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
