"""Images per second of our backends and of what else one would use: the complete tables of the docs, as Markdown.

    python benchmarks/speed.py
    python benchmarks/speed.py --device cuda --batches 8,32,256
    python benchmarks/speed.py --models densefeat_densenet121 --batches 8 --arms timm,openvino --precision fp32

Every arm of `densefeat bench --arms all`, network by network and batch by batch: prepared float32 images to every block's
average-pooled features, the same random weights for all, each arm in a process of its own. Ours read tap norm; the others give
what timm's forward_intermediates does: of a DenseNet the blocks' raw maps and the last norm's. Where timm lacks the network,
"plain network" is ours, a timm model, by the same forward_intermediates. Ratios are within a precision, to timm's eager network
in channels_last with a tuned allocator (on a GPU: channels_last).

The first call goes from weights in a file to features, without imports, with empty compiler caches. Memory is what a process
needs beyond its imports; on a GPU, what torch reserved. "Of ceiling" compares an arm's arithmetic with the fastest
convolution's (on a GPU: with a matrix product's).
"""

import sys
from pathlib import Path
from typing import Any

import click

from densefeat.base import save_json
from densefeat.bench import REPORT_KIND, benchmark_options, compare, format_comparison, format_overview, make_plan
from densefeat.errors import UsageError

MODELS = "densefeat_densenet121,densefeat_densenet201,densefeat_densenet_bc100_k12,densefeat_delugenet146"


@click.command()
@click.option("--models", default=MODELS, show_default=True)
@click.option("--batches", default="1,8,32", show_default=True, help="Images a call.")
@click.option("--size", type=click.IntRange(32), help="Pixels of a side.  [default: each network's own]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "both"]), default="both", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--arms", default="all", show_default=True, help="As of `densefeat bench`.")
@click.option("--steps", type=click.IntRange(1), help="Calls a turn.  [default: about half a second's]")
@benchmark_options(rounds=5)
def main(models: str, batches: str, file: Path | None, **options: Any) -> None:
    """Measure and print."""
    try:
        plans = [make_plan(model, batch=int(batch), **options) for model in models.split(",") for batch in batches.split(",")]
    except (UsageError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    comparisons = []
    for plan in plans:
        comparisons.append(compare(plan, lambda line: print(line, file=sys.stderr)))
        print(format_comparison(comparisons[-1], markdown=True), end="\n\n", flush=True)
        if file:
            save_json(file, REPORT_KIND, {"comparisons": comparisons})
    print(f"images/s (ratio within the precision), by network and batch\n\n{format_overview(comparisons)}")


if __name__ == "__main__":
    main()
