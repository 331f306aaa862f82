"""``densefeat extract``."""

from typing import TYPE_CHECKING, Any

import click

from densefeat import extraction
from densefeat.base import Ranks
from densefeat_cli.options import (
    ByteCount,
    NumberOrAuto,
    base_option,
    blocks_option,
    device_option,
    epilog,
    fitted_stats_option,
    follow_links_option,
    image_size_option,
    images_option,
    in_chans_option,
    label_column_option,
    model_option,
    out_option,
    overwrite_option,
    pixel_options,
    pool_option,
    tap_option,
    threads_option,
    weights_option,
)
from densefeat_cli.output import check_rows, print_line

if TYPE_CHECKING:
    from densefeat.extraction import ExtractResult


@click.command(epilog=epilog("extract --images photos/ --out embeddings/ --model densefeat_densenet_bc100_k12"))
@images_option()
@out_option("Folder to write, or a single file NAME.parquet.")
@model_option(default="densefeat_densenet121")
@weights_option
@blocks_option
@tap_option
@pool_option(maps=True)
@image_size_option
@click.option(
    "--labels",
    type=click.Choice(["folder"]),
    help="folder: class/image.jpg gives the label class, and so does train/class/image.jpg.",
)
@label_column_option()
@click.option("--image-column", metavar="NAME", help="Column of paths or images, if its name does not show which it is.")
@base_option
@follow_links_option
@pixel_options
@in_chans_option
@fitted_stats_option
@click.option("--pages", default="first", show_default=True, metavar="first|all|N",
              help="Of files of several pages or frames: all, one row each, or the one of a number.")  # fmt: skip
@click.option("--dicom-tags", metavar="NAME,…",
              help="Of DICOM files: elements such as PatientSex,Modality whose values become columns.")  # fmt: skip
@click.option("--tile", type=int, metavar="PIXELS", help="Cut images into square tiles, one row each.")
@click.option("--stride", type=int, metavar="PIXELS", help="Distance from tile to tile.  [default: --tile]")
@click.option("--min-content", type=float, default=0.0, metavar="SHARE",
              help="Leave out tiles with a smaller share (0 to 1) that is neither nearly white nor nearly black.")  # fmt: skip
@click.option("--mpp", type=float, metavar="MICRONS",
              help="Microns a pixel of the tiles, by the scale that files state.  [default: as they are]")  # fmt: skip
@click.option("--max-pixels", type=int, help="Largest image that may be decoded whole.  [default: 178956970]")
@click.option("--max-tiles", type=int, help="Most tiles that an image may have.  [default: 4000000]")
@click.option("--memory", type=ByteCount(), metavar="SIZE",
              help="For decoding, in all threads, such as 2GB.  [default: half of what there is]")  # fmt: skip
@click.option("--decoder", type=click.Choice(["torchvision", "pillow"]), default="torchvision", show_default=True,
              help="Decoder of JPEGs; pillow: bit for bit timm's evaluation transform.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16", "int8"]), default="fp32", show_default=True,
              help="Arithmetic; a CPU that would emulate bf16 takes fp32; int8: on a CPU, calibrated first.")  # fmt: skip
@click.option("--calibration", metavar="DIR",
              help="Images to calibrate int8 on, or a store in int8 to take it from.  [default: 300 of --images]")  # fmt: skip
@click.option("--min-cosine", type=float, default=0.99, show_default=True, metavar="C",
              help="Stop where a block in int8 is less like float32, in the median of 64 images.")  # fmt: skip
@click.option("--backend", type=click.Choice(["auto", "reference", "buffer", "openvino", "triton"]), default="auto",
              show_default=True, help="What computes; reference: the plain network. A store keeps its backend.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
              help="Type of the stored vectors.")  # fmt: skip
@device_option
@click.option("--batch-size", type=NumberOrAuto(), default=32, show_default=True, help="Images a pass; auto: what fits.")
@threads_option
@click.option("--part-rows", type=int, help="Images for each part of a folder.  [default: 8192, 256 MB at most]")
@click.option("--on-error", type=click.Choice(["skip", "fail"]), default="skip", show_default=True,
              help="At an image that cannot be read: record it and go to the next image, or stop.")  # fmt: skip
@click.option("--max-failures", metavar="N|P%", help="Stop beyond so many failures, or such a share of the images.")
@overwrite_option
@click.option("--update", is_flag=True, help="Extract the images added or changed since; try failed reads again.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="ray: spread the parts over a Ray cluster.")  # fmt: skip
def extract_command(**options: Any) -> None:
    """Extract embeddings of a stream of images from every block at once to a folder of Parquet parts or a single Parquet file.

    One row an image (or tile), in the order of the input. An image that cannot be read has an entry in OUT/failures.parquet,
    or in NAME.failures.jsonl beside a single file. After an interruption the same command resumes.
    """
    names = ("batch_size", "workers", "on_error", "max_failures", "overwrite", "update", "engine", "memory")
    how = extraction.RunOptions(**{name: options[name] for name in names})
    limits = {name: options.pop(name) for name in ("max_pixels", "max_tiles")}
    extraction.check_arguments(options["images"], options["out"], how, options["part_rows"], **limits)
    result = extraction.extract(**options, **{name: limit for name, limit in limits.items() if limit is not None})
    if not Ranks.from_environment().first:  # under torchrun only the first process prints
        return
    check_rows(result)
    print_line(_format_result(result, "tiles" if options["tile"] else "images"))


def _format_result(result: "ExtractResult", unit: str) -> str:
    removed = [f"{result.removed} of the images are no longer in the input"] if result.removed else []
    left_out = f"; left out: {result.left_out}" if result.left_out else ""
    if not result.extracted:
        counts = ", ".join([f"{result.rows} rows", f"{result.failures} failures", *removed])
        return f"{result.path} is complete: {counts}; nothing was left to do{left_out}"
    blocks = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in result.shapes.items())
    skipped = [f"{result.skipped} tiles without content left out"] if result.skipped else []
    facts = [
        f"{result.rows} rows ({blocks})",
        f"{result.failures} failures" + (f" ({result.failures_path})" if result.failures else ""),
        *skipped,
        *removed,
        f"{result.seconds:.1f} s",
        f"{result.extracted / result.seconds:.1f} {unit}/s",
    ]
    return f"wrote {result.path}: {', '.join(facts)}{left_out}"
