"""``densefeat predict``."""

from typing import Any

import click

from densefeat import evaluation, store
from densefeat.base import printable
from densefeat_cli.options import (
    device_option,
    epilog,
    follow_links_option,
    images_option,
    model_option,
    out_option,
    overwrite_option,
    threads_option,
    weights_option,
)
from densefeat_cli.output import print_table

_MAX_CLASSES = 12  # in the table
_MAX_FAILURES = 3  # with a line each


@click.command(epilog=epilog("predict --model runs/photos --images new/ --out predictions/"))
@model_option(required=True, purpose="Folder of a probe; or ")
@images_option()
@out_option("Folder to write: predictions.csv and all scores.")
@weights_option
@device_option
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images a pass.")
@threads_option
@overwrite_option
@follow_links_option
def predict_command(**options: Any) -> None:
    """Predict the labels of images with a fine-tuned network or a probe: one line an image, in the order of the input.

    An image that cannot be read has an entry in OUT/scores/failures.parquet instead. After an interruption the same command
    resumes.
    """
    result = evaluation.predict(**options)
    if not result.rows:
        raise click.ClickException(f"none of {result.failures} images could be read: see {result.failures_path}")
    if result.counts:
        rows = [[name, f"{count:,}"] for name, count in list(result.counts.items())[:_MAX_CLASSES]]
        if (more := len(result.counts) - _MAX_CLASSES) > 0:
            rows.append([f"… {more} more", f"{sum(list(result.counts.values())[_MAX_CLASSES:]):,}"])
        print_table(["predicted", "images"], rows, right=["images"])
    for failure in store.open_store(result.store).failures[:_MAX_FAILURES]:
        click.echo(printable(f"not read: {failure.path}: {failure.reason}"), err=True)
    failures = f", {result.failures} failures ({result.failures_path})" if result.failures else ""
    click.echo(f"wrote {result.table}: {result.rows} rows{failures}; all scores in {result.store}")
