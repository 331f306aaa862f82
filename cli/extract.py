"""``densefeat extract``."""

from pathlib import Path

import click


@click.command(
    epilog="Example: densefeat extract --images photos/ --out embeddings.parquet --model densefeat_densenet_bc100_k12"
)
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder of images, read with all below it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Parquet file to write.")
@click.option(
    "--model", default="densefeat_densenet121", show_default=True, help="A name of `densefeat models`, or any timm model."
)
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint file instead of the published weights.")
@click.option("--blocks", default="all", show_default=True, help="Blocks by number, as in 2,4.")
@click.option("--tap", type=click.Choice(["norm", "raw"]), default="norm", show_default=True,
              help="norm: what the next stage reads; raw: the block's own output.")  # fmt: skip
@click.option(
    "--pool",
    default="avg",
    show_default=True,
    help="avg, max, gem (gem:P for another power than 3), none; or several: avg,max.",
)
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images a pass.")
@click.option("--workers", type=int, help="Processes that decode ahead.  [default: one a core on a GPU, fewer on a CPU]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, mps.")
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="The network's arithmetic."
)
@click.option("--image-size", type=int, help="Pixels of the square input.  [default: the weights' own]")
def extract(**options: object) -> None:
    """Embeddings of all images below a folder, from every block at once, to a Parquet file.

    One row an image, in the order of the paths; an image that cannot be read has a line in OUT.failures.jsonl instead.
    """
    import densefeat

    result = densefeat.extract(**options)  # type: ignore[arg-type]
    if not result.rows:
        raise click.ClickException(f"none of {result.failures} images could be read: see {result.failures_path}")
    blocks = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in result.shapes.items())
    failures = f"{result.failures} failures" + (f" ({result.failures_path})" if result.failures else "")
    rate = (result.rows + result.failures) / result.seconds
    click.echo(f"wrote {result.path}: {result.rows} rows ({blocks}), {failures}, {result.seconds:.1f} s, {rate:.1f} images/s")
