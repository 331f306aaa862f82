"""``densefeat map``."""

from pathlib import Path
from typing import Any

import click

from densefeat.base import printable


@click.command("map", epilog="Example: densefeat map embeddings/ --out map.html")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Page to write; beside it its points, as .parquet.")
@click.option("--method", type=click.Choice(["pca", "umap", "tsne"]), default="pca", show_default=True,
              help="Projection of each block; umap needs densefeat[umap].")  # fmt: skip
@click.option("--images", help="Where the images are now.  [default: where the store's job found them]")
@click.option("--probe", type=click.Path(path_type=Path), help="Folder of densefeat probe: colours by right and wrong.")
@click.option(
    "--labels", type=click.Path(path_type=Path), metavar="FILE.csv", help="Of path,label.  [default: the store's own]"
)
@click.option("--label-column", metavar="NAME", help="Other than label.")
@click.option("--clusters", "cluster_count", type=click.IntRange(1), default=10, show_default=True,
              help="Of k-means on the last block.")  # fmt: skip
@click.option("--pool", help="Of a store with several: avg, max, gem.  [default: its first]")
def map_(store: Path, out: Path, **options: Any) -> None:
    """A STORE as one page: every block's features as points, with thumbnails, labels and search.

    The page needs no network and nothing beside it. Of more than 20,000 rows it shows 20,000.
    """
    import densefeat
    from densefeat.map import write_map

    made = write_map(densefeat.open_store(store), out, progress=True, **options)
    for note in made.notes:
        click.echo("densefeat: " + printable(note), err=True)
    click.echo(f"wrote {made.page} and {made.table}: {made.points:,} point{'' if made.points == 1 else 's'}", err=True)
