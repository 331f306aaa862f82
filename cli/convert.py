"""``densefeat convert``."""

from pathlib import Path

import click

from densefeat import base
from densefeat import store as stores
from densefeat_cli.options import epilog, out_option, store_argument
from densefeat_cli.output import print_line


@click.command(epilog=epilog("convert embeddings/ --to npy --out arrays/ --blocks 3,4"))
@store_argument
@click.option("--to", required=True, type=click.Choice(["npy", "npz", "safetensors", "datasets", "csv"]),
              help="npy, datasets: a folder; npz, safetensors, csv: a file.")  # fmt: skip
@out_option("Folder or file to write; it must not exist.")
@click.option("--columns", "--blocks", "columns", metavar="NAMES",
              help="Vector columns by name, or blocks by number, such as 3,4.  [default: all]")  # fmt: skip
def convert_command(store: Path, to: str, out: Path, columns: str | None) -> None:
    """Convert the embeddings of a STORE, a folder or a single file, to another format, with their keys and provenance.

    Rows keep their order. Memory stays bounded, whatever the size of the store. OUT appears when it is complete.
    """
    opened = stores.open_store(store)
    chosen = stores.choose_columns(opened, columns.split(",") if columns is not None else None)
    with base.progress_bar("converting", len(opened) * len(chosen), "vectors") as advance:
        stores.convert(opened, to, out, chosen, advance)
    shapes = ", ".join(f"{name} {'×'.join(map(str, opened.shapes[name]))}" for name in chosen)
    print_line(f"wrote {out}: {len(opened)} rows ({shapes})")
