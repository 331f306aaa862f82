"""``densefeat bench``."""

from pathlib import Path
from typing import Any

import click

from densefeat import base, bench
from densefeat_cli.options import epilog, out_option
from densefeat_cli.output import print_line, status_line


@click.command(epilog=epilog("bench --batch 32 --precision both --out speed.json"))
@click.option("--model", default="densefeat_densenet121", show_default=True, help="A name of `densefeat models`.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images a call.")
@click.option("--size", type=click.IntRange(32), help="Pixels of the square images.  [default: the network's own]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "both"]), default="fp32", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each arm.")
@click.option("--steps", type=click.IntRange(1), help="Calls a turn.  [default: about half a second's]")
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder.  [default: noise]")
@click.option("--arms", default="quick", show_default=True,
              help="quick: timm eager and the backends; ours; all; or names, such as timm-nchw,buffer.")  # fmt: skip
@out_option("JSON file to write, with everything measured.", required=False)
def bench_command(out: Path | None, **options: Any) -> None:
    """Find the fastest backend on this machine: images per second from prepared images to every block's pooled features.

    Each arm runs in a process of its own with the same random weights. Its features are compared with the plain network's,
    then the arms take turns. Ratios are to timm's eager network in channels_last with a tuned allocator, in the same precision.
    About a minute; --arms all adds the alternatives that one would consider, some of which compile for minutes.
    """
    bench.check_arms(options["arms"], options["device"])
    if out is not None:
        base.check_target(out, base.has_kind(bench.REPORT_KIND))
    with status_line() as say:
        comparison = bench.compare(bench.make_plan(**options), say)
    if out is not None:
        base.save_json(out, bench.REPORT_KIND, comparison)
    for line in bench.format_comparison(comparison).splitlines():
        print_line(line)
    if all(arm["problem"] for arm in comparison["arms"]):
        raise click.ClickException("no arm could be measured")
