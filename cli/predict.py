"""``densefeat predict``."""

from typing import Any

import click

from densefeat import certainty, evaluation, store
from densefeat_cli.options import (
    device_option,
    epilog,
    follow_links_option,
    images_option,
    model_option,
    out_option,
    overwrite_option,
    pixel_options,
    threads_option,
    weights_option,
)
from densefeat_cli.output import print_line, print_table

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
@pixel_options
@click.option("--risk", type=float, metavar="SHARE", help="Give only answers of which at most this share is wrong, such as"
              " 0.05 (column answered). For a probe.")  # fmt: skip
@click.option("--set", "level", type=float, metavar="LEVEL", help="Sets of classes (of numbers: intervals) of which this share"
              " holds the truth, such as 0.95. For a probe.")  # fmt: skip
def predict_command(**options: Any) -> None:
    """Predict the labels of images with a fine-tuned network or a probe: one line an image, in the order of the input.

    With a probe, probabilities are calibrated, and the column ood says how usual an image is: the share of the probe's
    validation images that are no more usual.

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
        print_line(f"not read: {failure.path}: {failure.reason}", err=True)
    failures = f", {result.failures} failures ({result.failures_path})" if result.failures else ""
    if result.answered is not None:
        share, sure, wrong = (100 * part for part in (result.answered / result.rows, certainty.CONFIDENCE, options["risk"]))
        print_line(
            f"answered {result.answered:,} of {result.rows:,} ({share:.1f} %): with a confidence of {sure:g} %, at most"
            f" {wrong:g} % of the answers are wrong, if these images are drawn as the probe's were"
        )
    print_line(f"wrote {result.table}: {result.rows} rows{failures}; all scores in {result.store}")
