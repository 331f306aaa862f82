"""``densefeat bench``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


@click.command(epilog="Example: densefeat bench --batch 32 --precision both --out speed.json")
@click.option("--model", default="densefeat_densenet121", show_default=True, help="A name of `densefeat models`.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images a call.")
@click.option("--size", type=click.IntRange(32), help="Pixels of the square images.  [default: the network's own]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "both"]), default="fp32", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each arm.")
@click.option("--steps", type=click.IntRange(1), help="Calls a turn.  [default: about half a second's]")
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder.  [default: noise]")
@click.option("--arms", default="quick", show_default=True,
              help="quick: timm eager and the backends; ours; all; or names, as timm-nchw,buffer.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write everything measured there, too, as JSON.")
def bench(out: Path | None, **options: Any) -> None:
    """Which backend is the fastest on this machine: images per second from prepared images to every block's pooled features.

    Each arm runs in a process of its own, with the same random weights; they take turns, and their features are compared with
    the plain network's first. About a minute; --arms all adds what else one would use, some of which compile for minutes.
    """
    import json

    from densefeat.base import atomic_file, check_target
    from densefeat.bench.compare import compare
    from densefeat.bench.plan import make_plan
    from densefeat.bench.report import heading, notes, text_table, verdict

    if out is not None:
        check_target(out)
    with told_on_a_terminal() as say:
        told = compare(make_plan(**options), say)
    if out is not None:
        with atomic_file(out) as beside:
            beside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    click.echo("\n".join([heading(told), "", text_table(told), "", *notes(told), "", *verdict(told)]).rstrip())
    if all(arm["problem"] for arm in told["arms"]):
        raise click.ClickException("no arm could be measured")


@contextmanager
def told_on_a_terminal() -> Iterator[Callable[[str], object]]:
    """A function for what is being done at present: on stderr where that is a terminal, else nowhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("starting") as status:
        yield status.update
