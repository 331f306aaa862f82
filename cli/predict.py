"""``densefeat predict``."""

from pathlib import Path
from typing import Any

import click

from densefeat.base import printable

_SHOWN = 12  # classes
_FAILED = 3  # images named


@click.command(epilog="Example: densefeat predict --model runs/photos --images new/ --out predictions/")
@click.option("--model", required=True, help="Folder of a run or a probe, or a name of densefeat models or timm's.")
@click.option("--images", required=True, help="As densefeat extract takes them.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for predictions.csv and all scores.")
@click.option("--weights", type=click.Path(path_type=Path), help="A checkpoint file of your own for a named MODEL.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, mps.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images a pass.")
@click.option("--workers", type=int, help="Threads that read and decode.  [default: one a core, four for a network]")
@click.option("--overwrite", is_flag=True, help="Start over where OUT has other predictions.")
@click.option("--follow-links", is_flag=True, help="Read linked files and folders, also outside the folder.")
def predict(**options: Any) -> None:
    """What a fine-tuned network or a probe says of images: one line an image, in the order of the input.

    An image that cannot be read has an entry in OUT/scores/failures.parquet instead. The same command goes on where it was
    interrupted.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from densefeat.evaluation import predict
    from densefeat.store import open_store

    result = predict(**options)
    if not result.rows:
        raise click.ClickException(f"none of {result.failures} images could be read: see {result.failures_path}")
    if result.counts:
        table = Table(box=None, pad_edge=False)
        table.add_column("predicted")
        table.add_column("images", justify="right")
        for name, count in list(result.counts.items())[:_SHOWN]:
            table.add_row(Text(printable(name)), f"{count:,}")
        if (more := len(result.counts) - _SHOWN) > 0:
            table.add_row(Text(f"… {more} more"), f"{sum(list(result.counts.values())[_SHOWN:]):,}")
        Console().print(table)
    failures = f", {result.failures} failures ({result.failures_path})" if result.failures else ""
    for failure in open_store(result.store).failures[:_FAILED]:
        click.echo(printable(f"not read: {failure.path}: {failure.reason}"), err=True)
    click.echo(f"wrote {result.table}: {result.rows} rows{failures}; all scores in {result.store}")
