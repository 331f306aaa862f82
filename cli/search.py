"""``densefeat search``."""

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densefeat import base, search
from densefeat import store as stores
from densefeat_cli.options import OUTPUT_TYPE, PATH_TYPE, device_option, epilog, shown_images_option, store_argument
from densefeat_cli.output import DataOutput, late_progress_bar, print_line, print_note, print_table

if TYPE_CHECKING:
    from densefeat.search import Neighbours, Pairs

_TABLE_ROWS = 10_000


@click.command(epilog=epilog("search embeddings/ --image query.jpg --html neighbours.html --images photos/"))
@store_argument
@click.option("--image", "queries", multiple=True, type=PATH_TYPE, help="Image file to find neighbours of; may be repeated.")
@click.option("--key", "keys", multiple=True,
              help="Image of the store to find neighbours of, PATH, page, PATH:p2, or tile, PATH:X,Y; repeatable.")  # fmt: skip
@click.option("--all-pairs", is_flag=True, help="Near duplicates: all pairs within --threshold.")
@click.option("--threshold", type=float, help="Least similarity, or largest distance, of a pair.")
@click.option("--max-pairs", type=click.IntRange(1), default=1_000_000, show_default=True, help="Stop at so many pairs.")
@click.option("--block", type=int, help="Block by its number.  [default: the last of the store]")
@click.option("--column", metavar="NAME", help="Column of vectors by its name, such as block4_avg.")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Neighbours for each query.")
@click.option("--metric", type=click.Choice(["cosine", "euclidean", "dot"]), default="cosine", show_default=True)
@click.option("--engine", type=click.Choice(["exact", "faiss"]), default="exact", show_default=True,
              help="faiss: faster for all pairs or hundreds of queries, in memory, and may miss some.")  # fmt: skip
@click.option("--weights", type=PATH_TYPE, help="Checkpoint file that the store was made with, if it has moved.")
@device_option
@click.option("--format", "shape", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--html", type=OUTPUT_TYPE, help="Page to write, with thumbnails.")
@shown_images_option
def search_command(
    store: Path,
    queries: tuple[Path, ...],
    keys: tuple[str, ...],
    all_pairs: bool,
    threshold: float | None,
    max_pairs: int,
    shape: str,
    html: Path | None,
    images: str | None,
    **options: Any,
) -> None:
    """Find the images of a STORE that are nearest to an image, or all pairs of near duplicates in it."""
    _check_request(bool(queries or keys), all_pairs, threshold)
    if html is not None:
        stores.check_output(html, base.is_page)  # before the work
    opened = stores.open_store(store)
    if not opened.complete:
        print_note(f"{store} is not finished: {len(opened):,} rows are searched")
    result: Neighbours | Pairs
    with late_progress_bar("searching", len(opened), "rows") as progress:
        if threshold is None:
            result = search.find_neighbours(opened, queries, keys, progress=progress, **options)
        else:
            shared = {name: options[name] for name in ("block", "column", "metric", "engine")}
            result = search.find_duplicates(opened, threshold, max_pairs=max_pairs, progress=progress, **shared)
            if not result.pairs.complete:
                print_note(f"stopped at {max_pairs:,} pairs, there are more: see --threshold, --max-pairs")
    if html is not None:
        problem = search.write_page(html, result, images)
        print_line(f"wrote {html}" + (f", without images: {problem}" if problem else ""), err=True)
    {"table": _print_table, "csv": _print_csv, "json": _print_json}[shape](result)


def _check_request(has_queries: bool, all_pairs: bool, threshold: float | None) -> None:
    if has_queries == all_pairs:
        raise click.UsageError("search for --image or --key, or for --all-pairs" + (": not both" if has_queries else ""))
    if all_pairs and threshold is None:
        raise click.UsageError("--all-pairs needs a --threshold, such as 0.95 for cosine")
    if has_queries and threshold is not None:
        raise click.UsageError("--threshold is for --all-pairs; for neighbours: -k")


def _print_table(result: "Neighbours | Pairs") -> None:
    records = result.records()
    rows = [[_format_value(record[field]) for field in result.fields] for record in islice(records, _TABLE_ROWS)]
    print_table(result.fields, rows, right=("rank", "score", "group"))
    if next(records, None):
        print_note(f"the table ends after {_TABLE_ROWS:,} rows: csv and json have all")


def _format_value(value: Any) -> str:
    return "" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)


def _print_csv(result: "Neighbours | Pairs") -> None:
    rows = ([record[field] for field in result.fields] for record in result.records())
    base.write_csv(DataOutput(), result.fields, rows, "the CSV")


def _print_json(result: "Neighbours | Pairs") -> None:
    """Print one object, with a line for each result."""
    output = DataOutput()
    head = json.dumps(result.summary(), ensure_ascii=False)
    output.write(head[:-1] + ', "results": [')
    for number, record in enumerate(result.records()):
        line = json.dumps({field: record[field] for field in result.fields}, ensure_ascii=False)
        output.write((",\n" if number else "\n") + line)
    output.write("\n]}\n")
