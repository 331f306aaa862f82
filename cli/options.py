"""Options and types that several commands share, so that each has one wording."""

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from densefeat import base, images, loading

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_Decorator = Callable[[Any], Any]


class _LocalPath(click.Path):
    """A path on this machine, whose name is UTF-8."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        base.check_path_name(value)
        return super().convert(value, param, ctx)


class _OutputPath(click.Path):
    """A path to write; an address is refused at once."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        base.check_output_name(value)
        return super().convert(value, param, ctx)


PATH_TYPE = _LocalPath(path_type=Path)
OUTPUT_TYPE = _OutputPath(path_type=Path)


class ModelName(click.ParamType):
    """The name of a model, or a folder; a folder that does not exist is refused at once."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        base.check_path_name(value, "model")
        loading.check_model_name(value)
        return value


class ImageInput(click.ParamType):
    """An input of images; a local path that does not exist is refused at once."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        images.check_input(value)
        return value


class NumberOrAuto(click.ParamType):
    """An integer or the word ``auto``."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


class ByteCount(click.ParamType):
    """A number of bytes, such as ``2GB`` or ``500MB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", str(value).strip().upper())
        if match is None:
            self.fail(f"{value!r} is no number of bytes: give one such as 2GB or 500MB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


def out_option(description: str, required: bool = True) -> _Decorator:
    """Make ``--out``, a path to write. ``description``: what is written."""
    return click.option("--out", type=OUTPUT_TYPE, required=required, help=description)


def images_option(name: str = "--images", required: bool = True, description: str = "") -> _Decorator:
    """Make an option for images, labelled or not."""
    kinds = (
        "Folder; list of paths (.txt, .csv, .parquet); Parquet, save_to_disk or hf:NAME:SPLIT data set; tar shards"
        " ('shards-{000..099}.tar'); any of these at s3://, gs://, …"
    )
    return click.option(name, type=ImageInput(), required=required, help=description or kinds)


def labelled_option(
    name: str = "--data", required: bool = True, purpose: str = "Labelled images", checked: bool = True
) -> _Decorator:
    """Make an option for images with labels. ``checked``: whether an input that does not exist is refused at once."""
    kinds = (
        "a folder of classes (class/image.jpg), a list with labels (.csv), Parquet files, tar shards, hf:NAME:SPLIT,"
        " or a folder with CIFAR's or SVHN's own files."
    )
    return click.option(name, type=ImageInput() if checked else str, required=required, help=f"{purpose}: {kinds}")


def label_column_option(purpose: str = "") -> _Decorator:
    """Make ``--label-column``, for labelled images."""
    text = "Column with the labels (default: label), or extension of the tar members that hold them (default: cls)."
    return click.option("--label-column", metavar="NAME", help=purpose + text)


base_option = click.option(
    "--base", metavar="FOLDER", help="Folder that a list's paths are relative to.  [default: the list's own]"
)


def model_option(default: str | None = None, purpose: str = "", required: bool = False, note: str = "") -> _Decorator:
    """Make ``--model``, a name or a folder."""
    text = f"{purpose}A name of `densefeat models`, any timm model, or a run's folder.{note}"
    return click.option(
        "--model", type=ModelName(), default=default, show_default=default is not None, required=required, help=text
    )


def epilog(*examples: str) -> str:
    """Format the last line of a command's help."""
    return "Example: " + ", or: ".join(f"densefeat {example}" for example in examples)


model_argument = click.argument("model", type=ModelName())
store_argument = click.argument("store", type=PATH_TYPE)
weights_option = click.option("--weights", type=PATH_TYPE, help="Checkpoint file instead of the published weights.")
image_size_option = click.option("--image-size", type=int, help="Pixels of the square input.  [default: the weights' own]")
blocks_option = click.option("--blocks", default="all", show_default=True, help="Blocks by number, such as 2,4.")
tap_option = click.option(
    "--tap", type=click.Choice(["norm", "raw"]), default="norm", show_default=True,
    help="norm: what the next stage reads; raw: the block's own output.",
)  # fmt: skip


def pool_option(default: str | None = "avg", maps: bool = False) -> _Decorator:
    """Make ``--pool``. ``maps``: whether ``none``, which keeps the maps, is a choice."""
    kinds = f"avg, max, gem (gem:P for another power than 3){', none' if maps else ''}; or several: avg,max."
    note = "" if default else "  [default: avg]"
    return click.option("--pool", default=default, show_default=default is not None, help=kinds + note)


_RANGE = (
    "Which values are black and white: auto, as files declare; LOW:HIGH; p1:p99, percentiles of all images; image:p1:p99, of"
    " each; dtype."
)


def rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the pixel rule, each None where it is not given."""
    for option in (
        click.option("--icc", type=click.Choice(["convert", "ignore"]), help="Embedded colour profiles.  [default: convert]"),
        click.option("--nodata", type=float, metavar="VALUE", help="Value of pixels without data, which become black."),
        click.option("--channels", metavar="N,N,N", help="Bands to read, by number from 1 or by name; one for grey."),
        click.option("--range", help=f"{_RANGE}  [default: auto]"),
    ):
        command = option(command)
    return command


def pixel_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the pixel rule, which the command gets as ``pixels``: None where none of them is given."""

    @rule_options
    @wraps(command)
    def with_rule(*args: Any, channels: str | None, **options: Any) -> Any:
        given = {name: options.pop(name) for name in ("range", "nodata", "icc")} | {"channels": images.parse_channels(channels)}
        given = {name: value for name, value in given.items() if value is not None}
        return command(*args, pixels=images.PixelRule(**given) if given else None, **options)

    return with_rule


channel_stats_option = click.option(
    "--channel-stats", metavar="FILE", help="Mean and deviation of each channel: JSON, or a store made with them."
)
in_chans_option = click.option(
    "--in-chans", type=int, metavar="N", help="Channels that the network reads.  [default: the weights' own]"
)
fitted_stats_option = click.option(
    "--channel-stats", metavar="FILE|fit", help="Mean and deviation of each channel: JSON, a store made with them, or fit."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
training_device_option = click.option(  # None, not auto: training is not tested on MPS
    "--device", help="cpu, cuda, cuda:N or mps.  [default: a CUDA GPU, else the CPU]"
)
threads_option = click.option(
    "--workers", type=int, help="Threads that read and decode.  [default: one a core, four for a network]"
)
follow_links_option = click.option(
    "--follow-links", is_flag=True, help="Read linked files and folders, also outside the folder."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Start over where OUT holds earlier results.")
steps_option = click.option(
    "--steps", type=click.IntRange(1), help="Stop after N steps with a checkpoint; the same command resumes from it.",
    metavar="N",
)  # fmt: skip
minutes_option = click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), metavar="N",
    help="Stop N minutes from now with a checkpoint; the same command resumes from it.",
)  # fmt: skip
shown_images_option = click.option("--images", help="Where the images are, for thumbnails.  [default: no thumbnails]")


def batch_size_option(default: int) -> _Decorator:
    """Make ``--batch-size``."""
    return click.option("--batch-size", type=click.IntRange(1), default=default, show_default=True, help="Images a pass.")


def network_options(batch_size: int) -> _Decorator:
    """Add the options of a job that sends images through a network. ``batch_size``: the default of ``--batch-size``."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            follow_links_option, overwrite_option, threads_option, batch_size_option(batch_size), device_option, weights_option,
        ):  # fmt: skip
            command = option(command)
        return command

    return add
