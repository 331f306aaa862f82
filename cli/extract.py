"""``densefeat extract``."""

import os
from pathlib import Path
from typing import Any

import click


class NumberOrAuto(click.ParamType):
    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


@click.command(epilog="Example: densefeat extract --images photos/ --out embeddings/ --model densefeat_densenet_bc100_k12")
@click.option("--images", required=True, help="Folder; list of paths (.txt, .csv, .parquet); Parquet, save_to_disk or"
              " hf:NAME:SPLIT data set; tar shards ('shards-{000..099}.tar'); any of these at s3://, gs://, …")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write, or a single file NAME.parquet.")
@click.option(
    "--model", default="densefeat_densenet121", show_default=True, help="A name of `densefeat models`, or any timm model."
)
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint file instead of the published weights.")
@click.option("--blocks", default="all", show_default=True, help="Blocks by number, as in 2,4.")
@click.option("--tap", type=click.Choice(["norm", "raw"]), default="norm", show_default=True,
              help="norm: what the next stage reads; raw: the block's own output.")  # fmt: skip
@click.option("--pool", default="avg", show_default=True,
              help="avg, max, gem (gem:P for another power than 3), none; or several: avg,max.")  # fmt: skip
@click.option("--image-size", type=int, help="Pixels of the square input.  [default: the weights' own]")
@click.option("--labels", type=click.Choice(["folder"]), help="folder: class/image.jpg gives the label class.")
@click.option("--label-column", metavar="NAME", help="Column of a list or table, or member extension in tars (cls).")
@click.option("--image-column", metavar="NAME", help="Column of paths or images, where it cannot be told.")
@click.option("--base", metavar="FOLDER", help="What a list's entries are relative to.  [default: the list's folder]")
@click.option("--follow-links", is_flag=True, help="Read linked files and folders, also outside the folder.")
@click.option("--tile", type=int, metavar="PIXELS", help="Cut images into square tiles, one row each.")
@click.option("--stride", type=int, metavar="PIXELS", help="From tile to tile.  [default: --tile]")
@click.option("--min-content", type=float, default=0.0, metavar="SHARE",
              help="Leave out tiles of which less is neither nearly white nor nearly black (0 to 1).")  # fmt: skip
@click.option("--max-pixels", type=int, help="Of an image that has to be decoded whole.  [default: 178956970]")
@click.option("--decoder", type=click.Choice(["torchvision", "pillow"]), default="torchvision", show_default=True,
              help="Of JPEG; pillow: bit for bit timm's evaluation transform.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True,
              help="The network's arithmetic.")  # fmt: skip
@click.option("--backend", type=click.Choice(["auto", "reference", "buffer", "openvino", "triton"]), default="auto",
              show_default=True, help="What computes; reference: the plain network. A store keeps its own.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
              help="Of the stored vectors.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, mps.")
@click.option("--batch-size", type=NumberOrAuto(), default=32, show_default=True, help="Images a pass; auto: what fits.")
@click.option("--workers", type=int, help="Threads that read and decode.  [default: one a core, four for a network]")
@click.option("--part-rows", type=int, help="Images for each part of a folder.  [default: 8192, 256 MB at most]")
@click.option("--on-error", type=click.Choice(["skip", "fail"]), default="skip", show_default=True,
              help="An image that cannot be read: note it and go on, or stop.")  # fmt: skip
@click.option("--max-failures", metavar="N|P%", help="Stop beyond so many failures, or such a share of the images.")
@click.option("--overwrite", is_flag=True, help="Start over where the folder holds a store.")
@click.option("--update", is_flag=True, help="Extract what was added since; try failed reads again.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="ray: spread the parts over a Ray cluster.")  # fmt: skip
def extract(**options: Any) -> None:
    """Embeddings of a stream of images, from every block at once, to a folder of Parquet parts or a single Parquet file.

    One row an image (or tile), in the order of the input; an image that cannot be read has an entry in OUT/failures.parquet,
    or in NAME.failures.jsonl beside a single file. The same command goes on where it was interrupted.
    """
    import densefeat

    if options["max_pixels"] is None:
        del options["max_pixels"]
    result = densefeat.extract(**options)
    if os.environ.get("RANK", "0") != "0":  # of torchrun's processes one speaks
        return
    if not result.rows:
        raise click.ClickException(f"none of {result.failures} images could be read: see {result.failures_path}")
    removed = f"{result.removed} of the images are no longer in the input"
    if not result.extracted:
        left = f", {removed}" if result.removed else ""
        click.echo(f"{result.path} is complete: {result.rows} rows, {result.failures} failures{left}; nothing was left to do")
        return
    blocks = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in result.shapes.items())
    failures = f"{result.failures} failures" + (f" ({result.failures_path})" if result.failures else "")
    told = [f"{result.rows} rows ({blocks})", failures]
    if result.skipped:
        told.append(f"{result.skipped} tiles without content left out")
    if result.removed:
        told.append(removed)
    unit = "tiles" if options["tile"] else "images"
    told.append(f"{result.seconds:.1f} s, {result.extracted / result.seconds:.1f} {unit}/s")
    click.echo(f"wrote {result.path}: {', '.join(told)}")
