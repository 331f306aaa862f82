"""``densefeat predict``."""

from typing import Any

import click

from densefeat import certainty, evaluation
from densefeat_cli.options import epilog, images_option, model_option, network_options, out_option, pixel_options
from densefeat_cli.output import format_failures, print_line, print_problems, print_table

_MAX_CLASSES = 12  # in the table


@click.command(epilog=epilog("predict --model runs/photos --images new/ --out predictions/"))
@model_option(required=True, purpose="Folder of a probe; or ")
@images_option()
@out_option("Folder to write: predictions.csv and all scores.")
@network_options(batch_size=32)
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
    print_problems(result)
    if result.counts:
        rows = [[name, f"{count:,}"] for name, count in list(result.counts.items())[:_MAX_CLASSES]]
        if (more := len(result.counts) - _MAX_CLASSES) > 0:
            rows.append([f"… {more} more", f"{sum(list(result.counts.values())[_MAX_CLASSES:]):,}"])
        print_table(["predicted", "images"], rows, right=["images"])
    if result.answered is not None:
        share, sure, wrong = (100 * part for part in (result.answered / result.rows, certainty.CONFIDENCE, options["risk"]))
        print_line(
            f"answered {result.answered:,} of {result.rows:,} ({share:.1f} %): with a confidence of {sure:g} %, at most"
            f" {wrong:g} % of the answers are wrong, if these images are drawn as the probe's were"
        )
    print_line(f"wrote {result.table}: {result.rows} rows{format_failures(result)}; all scores in {result.store}")
