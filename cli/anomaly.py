"""``densefeat anomaly``."""

import re
from typing import Any

import click

from densefeat import anomaly
from densefeat_cli.options import (
    PATH_TYPE,
    base_option,
    epilog,
    image_size_option,
    images_option,
    model_option,
    network_options,
    out_option,
    pixel_options,
)
from densefeat_cli.output import format_bytes, format_failures, print_facts, print_line, print_problems, print_unread

_KINDS = ("image_auroc", "AUROC of images"), ("pixel_auroc", "AUROC of pixels"), ("pro", "PRO (to 30 %)")


class _Share(click.ParamType):
    """A share, as ``1%`` or ``0.01``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", value.strip())
        if match is None:
            self.fail(f"{value!r} is no share: give one such as 1% or 0.01", param, ctx)
        return float(match[1]) / (100 if match[2] else 1)


@click.group(epilog=epilog("anomaly fit --images good/ --out detector/"))
def anomaly_command() -> None:
    """Find images that are unlike good ones, and where in the image the difference is. Learns from good images alone."""


@anomaly_command.command(epilog=epilog("anomaly fit --images good/ --out detector/ --false-alarms 1%"))
@images_option(description="Good images alone: all that `densefeat extract` reads.")
@out_option("Folder to write: detector.safetensors, and features/, which can be deleted at the end.")
@click.option("--method", type=click.Choice(["patchcore", "padim"]), default="patchcore", show_default=True,
              help="patchcore: distances to a memory bank of good features; padim: a Gaussian at each position, faster, for"
              " images that show the same thing at the same place.")  # fmt: skip
@click.option("--false-alarms", type=_Share(), default="5%", show_default=True, metavar="SHARE",
              help="Share of good images that may be called anomalous; 5% needs at least 38 images, 1% 198.")  # fmt: skip
@model_option(default="densefeat_densenet121")
@image_size_option
@pixel_options
@network_options(batch_size=8)
@base_option
def fit(**options: Any) -> None:
    """Learn what good images look like.

    A fifth of the images, or more for a low rate of false alarms, is held out and sets the threshold: the score above which an
    image is called anomalous. Images are stretched to the network's square input. An image that cannot be read has an entry in
    OUT/features/failures.parquet instead. After an interruption the same command resumes.
    """
    fitted = anomaly.fit_detector(**options)
    detector, alarms = fitted.detector, fitted.detector.alarms
    print_unread(fitted.store)
    if fitted.failures:
        print_line(f"{fitted.failures:,} images could not be read: {fitted.failures_path}", err=True)
    low, high = (100 * end for end in alarms.interval)
    height, width = detector.shape
    print_facts(
        [
            ("learnt from", f"{detector.learnt:,} images, {len(alarms.held_out):,} more held out"),
            (
                "detector",
                f"{detector.method}, {height}×{width} positions, {format_bytes(detector.size)}{_count_bank(detector)}",
            ),
            (
                "threshold",
                f"{alarms.threshold:.6g}: {100 * alarms.expected_rate:.2g} % false alarms expected (95 % interval"
                f" {low:.2g} to {high:.2g} %)",
            ),
            ("time", f"{1000 * fitted.seconds:,.0f} ms an image, once it is decoded"),
        ]
    )
    print_line(f"wrote: {fitted.path}", err=True)


def _count_bank(detector: Any) -> str:
    return f", a bank of {len(detector.normal.bank):,} features" if detector.method == "patchcore" else ""


@anomaly_command.command(epilog=epilog("anomaly score --model detector/ --images new/ --out scores/"))
@click.option("--model", type=PATH_TYPE, required=True, help="Folder of `densefeat anomaly fit --out`, or the file in it.")
@images_option()
@out_option("Folder to write: anomalies.csv, index.html, results.json, heat/ with a PNG an image, and scores/, a store.")
@click.option("--masks", type=PATH_TYPE, help="Folder of masks of defects, to compute AUROC and PRO: KIND/NAME.png"
              " or KIND/NAME_mask.png for KIND/NAME.jpg; images in a folder good/ need none.")  # fmt: skip
@network_options(batch_size=8)
@base_option
def score(**options: Any) -> None:
    """Score how anomalous images are, and where.

    anomalies.csv has a line for each image, in the order of the input. A p-value of 0.01 means that at most 1 % of good images
    score as high; an image is anomalous if its p-value is at most the --false-alarms of the detector. An image that cannot be
    read has an entry in OUT/scores/failures.parquet instead. After an interruption the same command resumes.
    """
    scored = anomaly.score_images(**options)
    print_problems(scored)
    if scored.metrics:
        print_facts([(title, f"{100 * scored.metrics[name]:.2f} %") for name, title in _KINDS if name in scored.metrics])
        if "image_auroc" not in scored.metrics:
            print_line("no AUROC of images: that takes good images and images with defects", err=True)
    if scored.black_masks:
        print_line(f"{scored.black_masks:,} masks of defects are all black: their images count as good", err=True)
    print_line(
        f"wrote {scored.table}: {scored.rows:,} rows, {scored.anomalous:,} anomalous{format_failures(scored)}; worst first in"
        f" {scored.page}"
    )
