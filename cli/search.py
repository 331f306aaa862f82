"""``densefeat search``."""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densefeat.base import printable

if TYPE_CHECKING:
    from densefeat.search import Neighbours, Pairs

_PATIENCE = 2.0  # seconds without a progress bar
_TABLE_ROWS = 10_000


@click.command(epilog="Example: densefeat search embeddings/ --image query.jpg --html neighbours.html")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--image", "queries", multiple=True, type=click.Path(path_type=Path), help="Image file to find neighbours of;"
              " may be given again.")  # fmt: skip
@click.option("--key", "keys", multiple=True, help="The same for an image of the store, by its path; a tile as PATH:X,Y.")
@click.option("--all-pairs", is_flag=True, help="Near duplicates: all pairs within --threshold.")
@click.option("--threshold", type=float, help="Least similarity, or largest distance, of a pair.")
@click.option("--max-pairs", type=click.IntRange(1), default=1_000_000, show_default=True, help="Stop at so many pairs.")
@click.option("--block", type=int, help="Block by its number.  [default: the last of the store]")
@click.option("--column", metavar="NAME", help="Column of vectors by its name, as block4_avg.")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Neighbours for each query.")
@click.option("--metric", type=click.Choice(["cosine", "euclidean", "dot"]), default="cosine", show_default=True)
@click.option("--engine", type=click.Choice(["exact", "faiss"]), default="exact", show_default=True,
              help="faiss: faster for all pairs or hundreds of queries, in memory, and may miss some.")  # fmt: skip
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint that the store was made with, if it has moved.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, mps.")
@click.option("--format", "shape", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with thumbnails, too.")
@click.option("--images", help="Where the images for it are.  [default: where the store's job found them]")
def search(
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
    """The images of a STORE that are nearest to an image, or all pairs of near duplicates in it."""
    _check_question(bool(queries or keys), all_pairs, threshold)
    import densefeat
    from densefeat.search import find_duplicates, find_neighbours, write_page

    opened = densefeat.open_store(store)
    if not opened.complete:
        click.echo(f"densefeat: {store} is not finished: {len(opened):,} rows are searched", err=True)
    found: Neighbours | Pairs
    with _late_progress(len(opened)) as progress:
        if threshold is None:
            found = find_neighbours(opened, queries, keys, progress=progress, **options)
        else:
            shared = {name: options[name] for name in ("block", "column", "metric", "engine")}
            found = find_duplicates(opened, threshold, max_pairs=max_pairs, progress=progress, **shared)
            if not found.pairs.complete:
                click.echo(f"densefeat: stopped at {max_pairs:,} pairs, there are more: see --threshold, --max-pairs", err=True)
    if html is not None:
        problem = write_page(html, found, images)
        click.echo(f"wrote {html}" + (f", without images: {problem}" if problem else ""), err=True)
    {"table": _print_table, "csv": _print_csv, "json": _print_json}[shape](found)


def _check_question(asked: bool, all_pairs: bool, threshold: float | None) -> None:
    if asked == all_pairs:
        raise click.UsageError("search for --image or --key, or for --all-pairs" + (": not both" if asked else ""))
    if all_pairs and threshold is None:
        raise click.UsageError("--all-pairs needs a --threshold, as 0.95 for cosine")
    if asked and threshold is not None:
        raise click.UsageError("--threshold is for --all-pairs; for neighbours: -k")


@contextmanager
def _late_progress(rows: int) -> Iterator[Callable[[int], None]]:
    """Shown once a search has taken a while."""
    from densefeat.base import progress_bar

    began, done = time.monotonic(), 0
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def report(more: int) -> None:
            nonlocal advance, done
            done += more
            if advance is not None:
                advance(more)
            elif time.monotonic() - began > _PATIENCE:
                advance = stack.enter_context(progress_bar("searching", rows, "rows"))
                advance(done)

        yield report


def _print_table(found: "Neighbours | Pairs") -> None:
    """Columns as wide as their longest value, on a terminal folded: no path is ever cut off."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for field in found.fields:
        table.add_column(field, justify="right" if field in ("rank", "score", "group") else "left", overflow="fold")
    widest = 0
    records = found.records()
    for record in islice(records, _TABLE_ROWS):
        cells = [printable(_cell(record[field])) for field in found.fields]
        widest = max(widest, sum(len(cell) for cell in cells))
        table.add_row(*map(Text, cells))
    console = Console()
    if not console.is_terminal:
        console.width = 2 * widest + 20 * len(found.fields)  # a character takes two columns at most
    console.print(table)
    if next(records, None):
        click.echo(f"densefeat: the table ends after {_TABLE_ROWS:,} rows: csv and json have all", err=True)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)


def _print_csv(found: "Neighbours | Pairs") -> None:
    writer = csv.DictWriter(sys.stdout, found.fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.records())


def _print_json(found: "Neighbours | Pairs") -> None:
    """One object, a line for each result."""
    head = json.dumps(found.summary(), ensure_ascii=False)
    sys.stdout.write(head[:-1] + ', "results": [')
    for number, record in enumerate(found.records()):
        line = json.dumps({field: record[field] for field in found.fields}, ensure_ascii=False)
        sys.stdout.write((",\n" if number else "\n") + line)
    sys.stdout.write("\n]}\n")
