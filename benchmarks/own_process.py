"""What a process of our own gains by keeping freed memory, and by threads that sleep soon when they wait for each other.

    python benchmarks/own_process.py
    python benchmarks/own_process.py --works densenet121-evaluation --threads 2 --rounds 5

The plain network, which evaluation and training run. Three arms, each in a process of its own, take turns round by round:
default; memory, with glibc's allocator as ``densefeat.base.keep_freed_memory`` sets it; settled, with OpenMP's waiting, too. A
single thread waits for nobody, and has two arms. Processor time is user and system together; on a machine that others use, it
says more than time by the clock. Faults are pages that the kernel had to add during a step.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click

from densefeat.base import keep_freed_memory, settle_threads

WORKS = {  # network, pixels of a side, images a step
    f"{name}-{work}": (name, *sizes, work)
    for name, sizes in {"densenet121": (224, 8), "densenet_bc100_k12": (32, 64)}.items()
    for work in ("evaluation", "training")
}
LIBGOMP_SPINS = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own number: a variable that is set stays
ARMS: dict[str, tuple[bool, dict[str, str]]] = {"default": (False, {}), "memory": (True, LIBGOMP_SPINS), "settled": (True, {})}
SET = ("MALLOC_", "GLIBC_TUNABLES", "OMP_", "GOMP_")  # variables that would decide in place of the arms
COLUMNS = (
    "arm=arm | processor, s=cpu:.2f | times less (range)=cpu_ratio | clock, s=seconds:.2f | times as fast (range)=ratio"
    " | in the kernel=kernel:.0% | faults=faults:,.0f | peak, MB=peak:,.0f"
)


def make_step(network: str, size: int, batch: int, work: str) -> Callable[[], object]:
    """A step of evaluation, or of training by SGD, on noise in channels_last."""
    import timm
    import torch
    import torch.nn.functional as F

    import densefeat  # noqa: F401  (registers the models)

    model = timm.create_model(f"densefeat_{network}").to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    y = torch.zeros(batch, dtype=torch.long)
    if work == "evaluation":
        return partial(torch.inference_mode()(model.eval()), x)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def run_arm(work: str, settled: bool) -> None:
    """Take a step for each line on stdin, and print what it needed."""
    if settled:
        settle_threads()
        keep_freed_memory()
    step = make_step(*WORKS[work])
    from densefeat.bench import read_peak, reset_peak

    reset_peak()
    for _ in range(2):  # the allocator has learnt the sizes, and oneDNN has its kernels
        step()
    print("{}", flush=True)
    for _ in sys.stdin:
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        step()
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        user, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        used = {"seconds": seconds, "user": user, "kernel": kernel, "faults": after.ru_minflt - before.ru_minflt}
        print(json.dumps(used | {"peak": read_peak() / 1e6}), flush=True)


def start_arm(stack: ExitStack, work: str, arm: str, threads: int) -> Callable[[], dict[str, float]]:
    """Start an arm's process; return what lets it take a step."""
    settled, variables = ARMS[arm]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SET)}
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, __file__, "arm", work, *(["--settled"] if settled else [])], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept | variables | {"OMP_NUM_THREADS": str(threads)},
        )
    )  # fmt: skip
    stack.callback(process.terminate)

    def ask(request: str = "\n") -> dict[str, float]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request)
        process.stdin.flush()
        return json.loads(process.stdout.readline() or "null") or sys.exit(f"{work}, {arm}: its process has ended")

    assert process.stdout is not None
    process.stdout.readline()  # it is ready
    return ask


def summarize(turns: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each arm, of the medians of its steps."""
    from densefeat.bench import rate_rows

    rows = rate_rows({arm: [turn["seconds"] for turn in own] for arm, own in turns.items()}, "default")
    used = {arm: [turn["user"] + turn["kernel"] for turn in own] for arm, own in turns.items()}
    for row, processor in zip(rows, rate_rows(used, "default"), strict=True):
        own = turns[row["arm"]]
        row |= {"cpu": processor["seconds"], "cpu_ratio": processor["ratio"], "peak": max(turn["peak"] for turn in own)}
        row["faults"] = median(turn["faults"] for turn in own)
        row["kernel"] = sum(turn["kernel"] for turn in own) / sum(used[row["arm"]])
    return rows


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--works", default=",".join(WORKS), show_default=True)
@click.option("--threads", default="1,2", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Steps of each arm.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the numbers to this file.")
def main(context: click.Context, works: str, threads: str, rounds: int, file: Path | None) -> None:
    """Measure and print."""
    if context.invoked_subcommand:
        return
    from densefeat.bench import Report, measure_rounds

    report = Report("steps of the plain network, float32", file)
    for work in works.split(","):
        for count in map(int, threads.split(",")):
            with ExitStack() as stack:
                names = [arm for arm in ARMS if count > 1 or arm != "memory"]
                turns = measure_rounds({arm: start_arm(stack, work, arm, count) for arm in names}, rounds)
            report.add(f"{work}, {WORKS[work][2]} images, threads: {count}", summarize(turns), COLUMNS)


@main.command("arm", hidden=True)
@click.argument("work")
@click.option("--settled", is_flag=True)
def arm_command(work: str, settled: bool) -> None:
    run_arm(work, settled)


if __name__ == "__main__":
    main()
