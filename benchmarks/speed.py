"""Images per second of our backends and of what else one would use: the complete table of the docs, as Markdown.

    python benchmarks/speed.py
    python benchmarks/speed.py --device cuda
    python benchmarks/speed.py --models densefeat_densenet121 --batches 8 --arms timm,openvino --precision fp32

Every arm of `densefeat bench --arms all`, network by network and batch by batch: prepared float32 images to every block's
average-pooled features, the same random weights in all, each arm in a process of its own. Ours give tap norm. The others give
what timm's forward_intermediates does: of a DenseNet the blocks' raw maps and the last norm's. Features are compared with the
plain network's before anything is timed, and an arm that is off has no numbers. Where timm lacks the network, "plain network"
is ours, a timm model, by the same forward_intermediates.

An arm's first call is from weights in a file to features, imports apart, caches of compilers empty. Memory is what a process
came to need beyond its imports; on a GPU, what torch reserved. "Of ceiling": convolutions' arithmetic, as the arm does it,
beside the largest rate of a convolution (on a GPU: of a matrix product, then the least traffic beside the rate of a copy).
"""

import json
from pathlib import Path
from typing import Any

import click

from densefeat.base import atomic_file, check_target
from densefeat.bench.compare import compare
from densefeat.bench.plan import Plan, make_plan
from densefeat.bench.report import heading, markdown_table, notes, overview, verdict
from densefeat.errors import UsageError
from densefeat_cli.bench import told_on_a_terminal

MODELS = "densefeat_densenet121,densefeat_densenet201,densefeat_densenet_bc100_k12,densefeat_delugenet146"
BATCHES = {"cpu": "1,8,32", "cuda": "1,8,32,256"}


def plans(models: str, batches: str | None, **options: Any) -> list[Plan]:
    """All of them, so that wrong use is told before anything runs."""
    try:
        device = make_plan(device=options["device"]).device
        numbers = numbers_of(batches or BATCHES[device])
        return [make_plan(model, batch=batch, **options) for model in models.split(",") for batch in numbers]
    except UsageError as error:
        told = click.ClickException(str(error))
        told.exit_code = 2
        raise told from error


def numbers_of(batches: str) -> list[int]:
    fields = batches.split(",")
    if not all(field.isdecimal() and int(field) for field in fields):
        raise UsageError(f"batches {batches!r}: give numbers of images from 1 up, with commas between")
    return [int(field) for field in fields]


def print_comparison(told: dict[str, Any]) -> None:
    lines = [f"### {heading(told)}", "", markdown_table(told), "", *(f"- {note}" for note in [*notes(told), *verdict(told)])]
    print("\n".join(lines), end="\n\n", flush=True)


def save(file: Path, comparisons: list[dict[str, Any]]) -> None:
    with atomic_file(file) as beside:
        beside.write_text(json.dumps({"comparisons": comparisons}, indent=1) + "\n", encoding="utf-8")


@click.command()
@click.option("--models", default=MODELS, show_default=True)
@click.option("--batches", help=f"Images a call.  [default: {BATCHES['cpu']}; on a GPU {BATCHES['cuda']}]")
@click.option("--size", type=click.IntRange(32), help="Pixels of a side.  [default: each network's own]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "both"]), default="both", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--arms", default="all", show_default=True, help="As of `densefeat bench`.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Calls a turn.  [default: about half a second's]")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the numbers to this file too, after each table.")
def main(file: Path | None, **options: Any) -> None:
    """Measure and print."""
    wanted = plans(**options)
    if file:
        check_target(file)
    comparisons = []
    for plan in wanted:
        with told_on_a_terminal() as say:
            comparisons.append(compare(plan, say))
        print_comparison(comparisons[-1])
        if file:
            save(file, comparisons)
    print(f"images/s (ratio), by network and batch\n\n{overview(comparisons)}")


if __name__ == "__main__":
    main()
