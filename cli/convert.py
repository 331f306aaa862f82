"""``densefeat convert``."""

from pathlib import Path

import click


@click.command(epilog="Example: densefeat convert embeddings/ --to npy --out arrays/ --blocks 3,4")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(["npy", "npz", "safetensors", "datasets", "csv"]),
              help="npy, datasets: a folder; npz, safetensors, csv: a file.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder or file to write; it must not exist.")
@click.option("--columns", "--blocks", "columns", metavar="NAMES",
              help="Vector columns by name, or blocks by number, as in 3,4.  [default: all]")  # fmt: skip
def convert(store: Path, to: str, out: Path, columns: str | None) -> None:
    """Embeddings of a store, a folder or a single file, in another format, with their keys and provenance.

    Rows keep their order; memory stays bounded, whatever the store's size; OUT appears when it is whole.
    """
    from densefeat.base import progress_bar
    from densefeat.store import chosen_vectors, open_store
    from densefeat.store import convert as write

    opened = open_store(store)
    chosen = chosen_vectors(opened, columns.split(",") if columns is not None else None)
    with progress_bar("converting", len(opened) * len(chosen), "vectors") as advance:
        write(opened, to, out, chosen, advance)
    shapes = ", ".join(f"{name} {'×'.join(map(str, opened.shapes[name]))}" for name in chosen)
    click.echo(f"wrote {out}: {len(opened)} rows ({shapes})")
