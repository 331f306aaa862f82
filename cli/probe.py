"""``densefeat probe``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densefeat_cli.printable import printable

if TYPE_CHECKING:
    from densefeat.probe import Probed, Table

_OF_IMAGES = ("model", "weights", "image_size", "pool", "device", "batch_size", "workers")


@click.command(epilog="Example: densefeat probe embeddings/ --out probe/, or: densefeat probe --images photos/ --out probe/")
@click.argument("store", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for results, charts, page and probe.")
@click.option("--images", help="What to extract a store from, in OUT/features; with STORE: where its images are now.")
@click.option("--test", help="Store (or, with --images, images) to test on.  [default: a fifth of the rows]")
@click.option("--protocol", type=click.Choice(["logreg", "knn", "ridge", "sgd"]),
              help="sgd: on augmented --images.  [default: logreg, for numbers ridge]")  # fmt: skip
@click.option("--standardize", is_flag=True, help="Of logreg: features by their mean and deviation over the training rows.")
@click.option("--labels", metavar="folder|FILE.csv", help="class/image.jpg, or a CSV of path,label.  [default: the store's own;"
              " of a folder of images: folder]")  # fmt: skip
@click.option("--label-column", metavar="NAME", help="Other than label.")
@click.option("--task", type=click.Choice(["auto", "single", "multi", "regression"]), default="auto", show_default=True,
              help="multi: labels a|b; auto: by the labels.")  # fmt: skip
@click.option("--split-column", metavar="NAME", help="Of the CSV or the store: train, val, test.")
@click.option("--group-column", metavar="NAME", help="Rows of one value, as a patient, stay on one side.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--model", help="Of --images: a name of `densefeat models`, or any timm model.  [default: densefeat_densenet121]")
@click.option("--weights", type=click.Path(path_type=Path), help="Checkpoint file instead of the published weights.")
@click.option("--image-size", type=int, help="Pixels of the square input.  [default: the weights' own]")
@click.option("--pool", help="avg, max, gem; or several: avg,max.  [default: avg]")
@click.option("--device", help="auto, cpu, cuda, cuda:N, mps.  [default: auto]")
@click.option("--batch-size", type=click.IntRange(1), help="Images a pass.")
@click.option("--workers", type=int, help="Threads that read and decode.")
@click.option("--epochs", type=click.IntRange(1), help="Of sgd.")
def probe(store: Path | None, out: Path, images: str | None, protocol: str | None, **options: Any) -> None:
    """Which block's features serve the labels, how good they can get, and the model: heads on a STORE, or on images.

    A head for each block, for the best blocks together, and for all; chosen on validation rows, told of on test rows that
    nothing was chosen by. OUT gets results.json, report.html, charts, predictions.csv, and probe.safetensors.
    """
    _check_input(store, images, protocol, options)
    given = {name: value for name, value in options.items() if value is not None}
    if protocol == "sgd":
        _by_descent(str(images), out, given)
        return
    from densefeat.probe import probe as run

    for name in _OF_IMAGES:
        options.pop(name)
    options.pop("epochs")
    if store is None:
        options |= _of_images(str(images), out, given)
        store, images = options.pop("store"), None
    _show(run(store, out, images=images, protocol=protocol, **options))


def _check_input(store: Path | None, images: str | None, protocol: str | None, options: dict[str, Any]) -> None:
    if store is None and images is None:
        raise click.UsageError("give a STORE of densefeat extract, or --images to make one from")
    if protocol == "sgd":
        if options["standardize"]:
            raise click.UsageError("--standardize is for --protocol logreg")
        if store is not None or images is None:
            raise click.UsageError("--protocol sgd learns from augmented images: give --images, and no STORE")
        if options["task"] == "regression":
            raise click.UsageError("--task regression is not for --protocol sgd: use ridge")
        return
    if options["epochs"] is not None:
        raise click.UsageError("--epochs is for --protocol sgd")
    if store is not None:
        if given := [name for name in _OF_IMAGES if options[name] is not None]:
            raise click.UsageError(f"--{given[0].replace('_', '-')} is for --images alone: a STORE has its features")
        if options["labels"] == "folder":
            raise click.UsageError("--labels folder is for --images: give --labels FILE.csv, or none for the store's own")


def _by_descent(images: str, out: Path, given: dict[str, Any]) -> None:
    from densefeat.sgd_probe import probe_images

    given.pop("standardize")
    if "pool" in given:
        given["pools"] = given.pop("pool")
    probed = probe_images(images, out, **given)
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
        _show(probed)


def _of_images(images: str, out: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The store and test store of images, made now as far as they are not there, and how to find labels for them."""
    from densefeat.probe import FEATURES, extract_images, labels_of, reading_of

    settings = {name: given[name] for name in _OF_IMAGES if name in given}
    labels = given.get("labels"), given.get("label_column")
    click.echo(f"densefeat: features of {printable(images)} to {printable(str(out / FEATURES))}", err=True)
    store, *others = extract_images(
        images, given.get("test"), out, given.get("labels"), **settings, **reading_of(images, *labels)
    )
    found = {"store": store, "test": others[0] if others else None, "labels": None, "label_column": None}
    return found | labels_of(*labels)


def _show(probed: "Probed") -> None:
    """Tables on stdout; what was found odd, and where everything is, on stderr."""
    from densefeat.labels import format_remarks
    from densefeat.probe import cells, few_shot_cells

    results = probed.results
    for line in [*format_remarks(results["labels"]), *results["notes"]]:
        click.echo("densefeat: " + printable(line), err=True)
    marked = [candidate["name"] == results["best"] for candidate in results["candidates"]]
    wide, narrow = cells(results), cells(results, narrow=True)
    _print_table(*(wide if _fits_terminal(wide) else narrow), marked)
    if results["few_shot"]:
        _print_table(*few_shot_cells(results))
    click.echo(f"best: {printable(results['best'])} (by the validation rows; brackets: 95 % intervals on the test rows)")
    if results["comparison"]:
        click.echo(printable(results["comparison"]["told"]))
    if not (probed.path / "blocks.png").exists():
        click.echo("densefeat: no charts: they need matplotlib (pip install matplotlib)", err=True)
    click.echo(f"{'already there' if probed.done_before else 'wrote'}: {probed.path / 'report.html'}", err=True)


def _fits_terminal(table: "Table") -> bool:
    from rich.console import Console

    console, (headings, rows) = Console(), table
    widths = (max(map(len, column)) for column in zip(headings, *rows, strict=True))
    return not console.is_terminal or sum(widths) + 2 * len(headings) <= console.width


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    for number, row in enumerate(rows):
        style = "bold" if number < len(marked) and marked[number] else ""
        table.add_row(*(Text(printable(cell), style) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 40 * len(headings)
    console.print(table)
    click.echo()
