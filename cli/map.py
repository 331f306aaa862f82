"""``densefeat map``."""

from pathlib import Path
from typing import Any

import click

from densefeat import map as maps
from densefeat import store as stores
from densefeat_cli.options import PATH_TYPE, epilog, out_option, shown_images_option, store_argument
from densefeat_cli.output import print_line, print_note


@click.command(epilog=epilog("map embeddings/ --images photos/ --out map.html"))
@store_argument
@out_option("Page to write; its points are written beside it, as .parquet.")
@click.option("--method", type=click.Choice(["pca", "umap", "tsne"]), default="pca", show_default=True,
              help="Projection of each block; umap needs densefeat[umap].")  # fmt: skip
@shown_images_option
@click.option("--probe", type=PATH_TYPE, help="Folder of densefeat probe: colours by right and wrong.")
@click.option("--labels", type=PATH_TYPE, metavar="FILE.csv", help="CSV file of path,label.  [default: the store's own labels]")
@click.option("--label-column", metavar="NAME", help="Column with the labels.  [default: label]")
@click.option("--clusters", "cluster_count", type=click.IntRange(1), default=10, show_default=True,
              help="Clusters of k-means on the last block.")  # fmt: skip
@click.option("--pool", help="Pooling to show of a store with several: avg, max, gem.  [default: its first]")
def map_command(store: Path, out: Path, **options: Any) -> None:
    """Show a STORE as one page: every block's features as points, with thumbnails, labels and search.

    The page needs no network connection and no other file. It shows 20,000 rows at most.
    """
    opened = stores.open_store(store)
    result = maps.write_map(opened, out, progress=True, **options)
    for note in result.notes:
        print_note(note)
    points = f"{result.points:,} point{'' if result.points == 1 else 's'}"
    print_line(f"wrote {result.page} and {result.table}: {points}", err=True)
