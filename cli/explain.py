"""``densefeat explain``."""

from typing import Any

import click

from densefeat import explaining
from densefeat_cli.options import (
    base_option,
    epilog,
    images_option,
    label_column_option,
    model_argument,
    network_options,
    out_option,
    pixel_options,
)
from densefeat_cli.output import format_failures, print_line, print_problems


@click.command(epilog=epilog("explain probe/ --images photos/ --labels folder --out explained/"))
@model_argument
@images_option()
@out_option("Folder to write: maps/, pictures/, explained.csv, explained.json and index.html.")
@click.option("--class", "classes", metavar="NAME", multiple=True, help="Class to show besides the predicted one; repeatable.")
@click.option("--labels", type=click.Choice(["folder"]), help="folder: an image class/image.jpg has the label class, so that"
              " mistakes are known; lists, tables and tar files have their own labels.")  # fmt: skip
@label_column_option()
@base_option
@network_options(batch_size=32)
@pixel_options
def explain_command(**options: Any) -> None:
    """Show where in images the evidence for a class is. MODEL: a probe, a training run, or the name of a network.

    The score of a linear head is a sum over positions and blocks: the maps are its terms, and add up to the score. For other
    heads the maps are Grad-CAM of the last block, an approximation. The page has the worst mistakes, if there are labels,
    then the least certain predictions.

    An image that cannot be read has an entry in OUT/maps/failures.parquet instead. After an interruption the same command
    resumes.
    """
    result = explaining.explain(**options)
    print_problems(result)
    if result.exact:
        print_line(f"evidence: the maps and the bias add up to the scores, within {result.gap:.1e}")
    else:
        print_line("Grad-CAM of the last block: an approximation; the maps do not add up to the scores")
    wrong = "" if result.mistakes is None else f", {result.mistakes} wrong"
    print_line(f"wrote {result.page}: {result.rows} images{wrong}{format_failures(result)}; maps in {result.store}")
