"""``densefeat segment``."""

from pathlib import Path
from typing import Any

import click

from densefeat import segmentation
from densefeat_cli.options import (
    PATH_TYPE,
    ImageInput,
    base_option,
    batch_size_option,
    device_option,
    epilog,
    image_size_option,
    images_option,
    model_option,
    network_options,
    out_option,
    pixel_options,
    threads_option,
    weights_option,
)
from densefeat_cli.output import format_failures, print_line, print_note, print_problems, print_table

_MAX_CLASSES = 30  # in tables
_EXAMPLES = (
    "segment probe --images photos/ --masks masks/ --out segmenter/",
    "segment predict --model segmenter/ --images new/ --out predicted/",
)


@click.group(epilog=epilog(*_EXAMPLES))
def segment_command() -> None:
    """Learn the class of each pixel from a few dozen masks, and predict masks."""


@segment_command.command(epilog=epilog(_EXAMPLES[0]))
@images_option()
@click.option("--masks", type=PATH_TYPE, required=True, help="Folder of PNGs of class numbers (grey or palette), each with the"
              " relative path or the name of its image, and its size.")  # fmt: skip
@out_option("Folder to write: results.json, index.html, segmenter.safetensors and features/.")
@click.option("--classes", type=PATH_TYPE, metavar="FILE", help='Class names: a line each from 0, a JSON list, or a JSON object'
              ' {"0": "name"}.  [default: the numbers in masks]')  # fmt: skip
@click.option("--ignore", type=int, metavar="N", help="Class number of pixels to leave out, such as 255.")
@click.option("--test-images", type=ImageInput(), help="Images to test on (with --test-masks).  [default: a fifth of all]")
@click.option("--test-masks", type=PATH_TYPE, help="Masks of the test images.")
@base_option
@click.option("--protocol", type=click.Choice(["logreg", "knn"]), default="logreg", show_default=True,
              help="logreg: logistic regression; knn: votes of the nearest positions.")  # fmt: skip
@click.option("--stride", type=click.IntRange(1), default=4, show_default=True, metavar="PIXELS",
              help="Pixels of the network's input between neighbouring positions.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@model_option("densefeat_densenet121")
@weights_option
@image_size_option
@pixel_options
@device_option
@batch_size_option(32)
@threads_option
def probe(**options: Any) -> None:
    """Find which blocks tell the classes of pixels apart.

    Heads are fitted on the positions of images with masks: for each block, for the best blocks together, and for all. They are
    selected on validation images, reported on test images as mean IoU. The best one is the segmenter that `densefeat segment
    predict` applies. At least 3 images need masks. After an interruption the same command resumes.
    """
    probed = segmentation.probe_masks(**options)
    results = probed.results
    for note in results["notes"]:
        print_note(note)
    if probed.failures:
        print_note(f"{probed.failures:,} images could not be read: see failures.parquet in {probed.path / 'features'}")
    table = segmentation.segment_table(results)
    print_table(table.headings, table.rows, right=table.headings[1:], bold=table.bold_rows)
    print_line()
    table = segmentation.class_table(results)
    print_table(table.headings, table.rows[:_MAX_CLASSES], right=table.headings[1:])
    if (more := len(table.rows) - _MAX_CLASSES) > 0:
        print_line(f"… {more} more in results.json")
    print_line()
    counts = ", ".join(f"{count:,} {part}" for part, count in results["images"].items())
    brackets = "; brackets: 95 % intervals" if results["images"]["test"] > 1 else ""
    print_line(f"best: {results['best']} (by the validation images); images: {counts}{brackets}")
    print_line(f"{'already there' if probed.done_before else 'wrote'}: {probed.path / 'index.html'}", err=True)


@segment_command.command(epilog=epilog(_EXAMPLES[1]))
@click.option("--model", type=PATH_TYPE, required=True, help="Folder of densefeat segment probe, or its segmenter.safetensors.")
@images_option()
@out_option("Folder to write: masks/, overlays/, shares.csv, and logits/, a store of all scores.")
@base_option
@network_options(batch_size=32)
def predict(model: Path, **options: Any) -> None:
    """Predict the class of every pixel.

    For each image there is a mask, as a PNG of class numbers with a palette, and a picture of the mask laid over the image.

    An image that cannot be read has an entry in OUT/logits/failures.parquet instead. After an interruption the same command
    resumes.
    """
    result = segmentation.predict_masks(model, **options)
    print_problems(result)
    rows = sorted(result.shares.items(), key=lambda pair: -pair[1])
    print_table(
        ["class", "pixels, %"], [[name, f"{100 * share:.2f}"] for name, share in rows[:_MAX_CLASSES]], right=["pixels, %"]
    )
    print_line(f"wrote {result.masks}, {result.overlays}, {result.table}: {result.rows} rows{format_failures(result)}")
