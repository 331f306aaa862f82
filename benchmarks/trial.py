"""How fast a recipe trains on this machine, before a long run: by precision, threads of the CPU, and size of the images.

    python benchmarks/trial.py tin200 train=train.parquet val=val.parquet
    python benchmarks/trial.py cifar10_fast cuda_graph=false --sizes 16,24,32 --threads 2

Each arm is a run of ``densefeat train`` in a process of its own; they take turns round by round. A rate is the median of the
steps' rates in the log, without the first three steps. Precisions that this processor would emulate are left out.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path

import click

from densefeat.base import count_usable_cores, has_arithmetic
from densefeat.bench import Report, benchmark_options, measure_rounds, rate_rows
from densefeat.training import load_recipe

PRECISIONS = ("float32", "bf16", "fp16")
WARMUP_STEPS = 3


def measure_steps(recipe: str, overrides: list[str], steps: int) -> float:
    """Seconds of an image, as the log of a run tells them."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*overrides, "log_steps=1", "--out", f"{folder}/run", "--device", "cpu"]
        options += ["--steps", str(WARMUP_STEPS + steps)]
        command = [sys.executable, "-m", "densefeat", "train", recipe, *options]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            sys.exit(ended.stderr.splitlines()[-1])
        lines = map(json.loads, Path(folder, "run/metrics.jsonl").read_text().splitlines())
        rates = [line["images_per_second"] for line in lines if line["event"] == "train"]
    return 1 / statistics.median(rates[WARMUP_STEPS:])


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--threads", help="Numbers of threads.  [default: 1 and all cores]")
@click.option("--sizes", help="Sizes of the images.  [default: the recipe's]")
@click.option("--steps", default=10, show_default=True, type=click.IntRange(1), help="Of each arm in a round.")
@benchmark_options(rounds=1)
def main(
    recipe: str,
    overrides: tuple[str, ...],
    threads: str | None,
    sizes: str | None,
    steps: int,
    rounds: int,
    file: Path | None,
) -> None:
    """Measure and print."""
    counts = threads.split(",") if threads else sorted({"1", str(count_usable_cores())})
    precisions = [name for name in PRECISIONS if has_arithmetic(name)]
    whole = max(load_recipe(recipe, overrides).sizes.values())
    arms = {}
    for size, precision, count in product(map(int, (sizes or str(whole)).split(",")), precisions, counts):
        schedule = {0: size} | ({0.999: whole} if size < whole else {})  # of which the first size is measured
        own = [*overrides, f"precision={precision}", f"threads={count}", f"image_size={schedule}"]
        arms[f"{size} pixels, {precision}, threads: {count}"] = partial(measure_steps, recipe, own, steps)
    report = Report(f"training by {recipe} {' '.join(overrides)}", file)
    rows = rate_rows(measure_rounds(arms, rounds), next(iter(arms)))
    report.add("steps", rows, "arm=arm | images/s=rate:,.1f | times as fast (range)=ratio")


if __name__ == "__main__":
    main()
