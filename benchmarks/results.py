"""Trains the networks whose numbers the docs quote, in slices of some minutes, and writes a table of what there is so far.

    python benchmarks/results.py --data DATA --runs runs/ --minutes 9
    python benchmarks/results.py --minutes 0    (trains nothing: the table alone)

DATA has cifar10-train.parquet, cifar10-test.parquet, tinyimagenet32-train.parquet and tinyimagenet32-val.parquet: images of
32×32 in the datasets layout. The same command goes on where the last one stopped, run after run in the order below; when the
minutes are over, the run in progress saves a checkpoint. Recipe, metrics, scores and curves of every run are copied to
benchmarks/results/RUN/, the table is benchmarks/results/README.md. It needs no installed package, only this repository.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from densefeat.base import atomic_file  # noqa: E402
from densefeat.training import RECIPE, RESULTS  # noqa: E402
from densefeat.training.run_folder import METRICS, RunFolder  # noqa: E402

FILES = {  # train, val
    "cifar10": ("cifar10-train.parquet", "cifar10-test.parquet"),
    "tin200": ("tinyimagenet32-train.parquet", "tinyimagenet32-val.parquet"),
}
CURVES = "curves.png"
KEPT = (RECIPE, METRICS, RESULTS, CURVES)
DEVICE = "device.json"  # what the last slice ran on
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)  # the latter: before there was anything to keep
HEAD = """\
# Results

Written by `python benchmarks/results.py` from the files beside it: each run's recipe, metrics, scores and curves. One run each,
of the seed in its recipe. The 32×32 images are JPEG-compressed, so errors run above those on original pixels.

| run | network | epochs | images | top-1, % | error, % | training, min | device |
|---|---|---:|---:|---:|---:|---:|---|
"""


@dataclass(frozen=True)
class Run:
    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    data: str = "cifar10"


RUNS = (
    Run("tin200", "tin200", data="tin200"),
    Run("cifar10_fast_densenet_bc100_k12", "cifar10_fast"),
    Run("cifar10_fast_densenet40_k12", "cifar10_fast", ("model=densefeat_densenet40_k12",)),
    Run("cifar10_fast_delugenet146", "cifar10_fast", ("model=densefeat_delugenet146", "proj_drop_rate=0.0")),
    # the ten epochs that the full protocol begins with: the same images at the same rate
    Run("cifar10_densenet40_k12_ten_epochs", "cifar10_densenet40_k12", ("epochs=10", "milestones=[]")),
    Run("cifar10_densenet_bc100_k12", "cifar10_densenet_bc100_k12"),
    Run("cifar10_densenet40_k12", "cifar10_densenet40_k12"),
    Run("cifar10_delugenet146", "cifar10_delugenet146"),
)
NAMES = [run.name for run in RUNS]


def command(run: Run, out: Path, device: str, steps: int | None) -> list[str]:
    train, val = FILES[run.data]
    line = [sys.executable, "-m", "densefeat.training", str(ROOT / "recipes" / f"{run.recipe}.yaml"), *run.overrides]
    line += [f"train={train}", f"val={val}", "--out", str(out), "--device", device]
    if not device.startswith("cuda"):
        line.append("cuda_graph=false")
    return line if steps is None else [*line, "--steps", str(steps)]


def train(line: list[str], data: Path, end: float) -> int:
    """The exit code of a training process, which SIGTERM asks to stop at ``end`` of the monotonic clock.

    It runs in ``data``, so that the recipe that is kept names files and no machine's folders.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(line, cwd=data, env=environment, start_new_session=True)  # Ctrl-C comes by way of us, once
    try:
        return process.wait(max(0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where we are to stop
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode


def leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def collect(out: Path, target: Path, device: str) -> None:
    """Copy what a run has left so far."""
    if not (out / RECIPE).exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if not (out / name).exists():
            (target / name).unlink(missing_ok=True)
            continue
        with atomic_file(target / name) as beside:
            shutil.copyfile(out / name, beside)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    with atomic_file(target / DEVICE) as beside:
        beside.write_text(json.dumps({"device": name, "torch": torch.__version__}) + "\n", encoding="utf-8")


def row(folder: Path) -> str:
    """A line of the table; of a run that is not complete, its last evaluation and how far it is."""
    recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    metrics, results = RunFolder(folder).metrics(), RunFolder(folder).results()
    trained = [line for line in metrics if line["event"] == "train"]
    judged: list[dict[str, Any]] = [line for line in metrics if line["event"] == "val"]
    scores = results["val"] if results else judged[-1] if judged else None
    epochs = f"{recipe['epochs']:g}"
    if results is None:
        epochs = f"incomplete: {metrics[-1]['epoch'] if metrics else 0:.1f} of {epochs}"
        epochs += f", judged at {judged[-1]['epoch']:.1f}" if judged else ""
    cells = [folder.name, recipe["model"], epochs]
    cells += [f"{scores['images']:,}", f"{scores['top1']:.2f}", f"{100 - scores['top1']:.2f}"] if scores else [""] * 3
    device = json.loads((folder / DEVICE).read_text(encoding="utf-8"))["device"] if (folder / DEVICE).exists() else ""
    cells += [f"{trained[-1]['seconds'] / 60:.1f}" if trained else "", device]
    return f"| {' | '.join(cells)} |\n"


def write_table(results: Path) -> str:
    """README.md of all runs in ``results``, in the order above; curves are drawn where a run's machine could not."""
    folders = [results / name for name in NAMES if (results / name / RECIPE).exists()]
    for folder in folders:
        if not (folder / CURVES).exists():
            RunFolder(folder).draw()
    table = "".join(row(folder) for folder in folders)
    results.mkdir(parents=True, exist_ok=True)
    with atomic_file(results / "README.md") as beside:
        beside.write_text(HEAD + table, encoding="utf-8")
    return table


def check_data(runs: list[Run], data: Path) -> None:
    missing = [data / name for run in runs for name in FILES[run.data] if not (data / name).exists()]
    if missing:
        raise click.BadParameter(f"there is no {missing[0]}", param_hint="--data")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True, help="Folder of the files.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where runs are kept.")
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks/results", help="Where to copy them.")
@click.option("--minutes", type=click.FloatRange(0), default=9.0, show_default=True, help="Of this slice.")
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="This run.  [default: all]")
@click.option("--device", help="cpu, cuda.  [default: a GPU where there is one]")
@click.option("--steps", type=click.IntRange(1), help="Of each run in this slice.  [default: all]")
def main(
    data: Path, runs: Path, results: Path, minutes: float, only: tuple[str, ...], device: str | None, steps: int | None
) -> None:
    """Train on, copy, and write the table."""
    end = time.monotonic() + 60 * minutes
    signal.signal(signal.SIGTERM, leave)  # or the training process would be left alone
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = [run for run in RUNS if not only or run.name in only]
    due = [run for run in chosen if minutes and not (runs / run.name / RESULTS).exists()]
    check_data(due, data)
    failed = []
    for run in due:
        if time.monotonic() >= end:
            break
        out = (runs / run.name).absolute()
        print(run.name, flush=True)
        code = train(command(run, out, device, steps), data, end)
        collect(out, results / run.name, device)
        print(write_table(results), end="", flush=True)
        if code not in (0, *STOPPED):
            failed.append(f"{run.name} (exit code {code})")
    write_table(results)
    if failed:
        raise click.ClickException(f"{', '.join(failed)}: see above")


if __name__ == "__main__":
    main()
