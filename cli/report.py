"""``densefeat report``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densefeat.base import printable

if TYPE_CHECKING:
    from densefeat.report import Finding, Pruning

_TOLD = 5  # connections, from either end


@click.group()
def report() -> None:
    """Pictures and pages of what a network is and does.

    Example: densefeat report reuse densefeat_densenet_bc100_k12 --out reuse.png
    """


@report.command(epilog="Example: densefeat report reuse densefeat_densenet_bc100_k12 --out reuse.png")
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Picture, .png or .svg; beside it NAME.csv.")
@click.option("--weights", type=click.Path(path_type=Path), help="A checkpoint file of your own for MODEL.")
@click.option("--what", type=click.Choice(["weights", "prune"]), default="weights", show_default=True,
              help="prune: the accuracy that is lost without each connection.")  # fmt: skip
@click.option(
    "--images", help="Of prune: labelled images, as `densefeat evaluate` takes them, or a store: the images it is of."
)
@click.option("--limit", type=click.IntRange(2), help="Of prune: so many of the images, evenly.  [default: 1000]")
@click.option("--label-column", help="Of prune: as of `densefeat evaluate`.")
@click.option("--device", help="Of prune: cpu, cuda, cuda:1.  [default: a GPU where there is one]")
def reuse(model: str, out: Path, weights: Path | None, what: str, **of_images: Any) -> None:
    """Which layers read which: mean |weight| of every connection within the blocks (Figure 5 of the DenseNet paper).

    MODEL is a name of `densefeat models`, a DenseNet of timm, or a run's folder. The table says which of the paper's four
    observations hold. With --what prune, each connection is removed by itself on half of the images, and then more and more of
    them on the other half: NAME.csv has them cheapest first; the same command goes on from NAME.jsonl where it was stopped.
    """
    from densefeat.base import check_picture
    from densefeat.store import check_output

    _check_images(what, of_images)
    check_picture(out)
    check_output(out)
    if what == "prune":
        _prune_and_show(model, out, weights, **of_images)
        return
    from densefeat.base import save_picture
    from densefeat.report import REUSE_COLUMNS, draw_reuse, feature_reuse, load_plain, observations, write_reuse_csv
    from densefeat.store import csv_beside

    table = csv_beside(out, REUSE_COLUMNS)
    found = feature_reuse(load_plain(model, weights))
    write_reuse_csv(found, table)
    save_picture(draw_reuse(found, printable(model)), out)
    _print_table(*_finding_cells(observations(found)))
    click.echo(f"wrote: {out}, {table}", err=True)


def _check_images(what: str, of_images: dict[str, Any]) -> None:
    if what == "prune" and of_images["images"] is None:
        raise click.UsageError("--what prune needs labelled --images")
    given = [name for name, value in of_images.items() if value is not None]
    if what != "prune" and given:
        raise click.UsageError(f"--{given[0].replace('_', '-')} is for --what prune")


def _finding_cells(findings: "Sequence[Finding]") -> tuple[list[str], list[list[str]]]:
    blocks = range(1, len(findings[0].values) + 1)
    rows = []
    for finding in findings:
        values = ["" if value is None else f"{value:.3f}" for value in finding.values]
        holds = {True: "yes", False: "no", None: "–"}[finding.holds]
        rows.append([finding.observation, finding.statistic, *values, finding.condition, holds])
    return ["observation", "statistic", *(f"block {number}" for number in blocks), "needs", "holds"], rows


def _prune_and_show(
    model: str, out: Path, weights: Path | None, images: str, limit: int | None, label_column: str | None, device: str | None
) -> None:
    from densefeat.base import choose_device, progress_bar, save_picture
    from densefeat.nets import state_sha256
    from densefeat.report import (
        PRUNING_COLUMNS,
        Journal,
        draw_pruning,
        feature_reuse,
        load_sample,
        prune,
        work_of,
        write_pruning_csv,
    )
    from densefeat.store import csv_beside

    table, place = csv_beside(out, PRUNING_COLUMNS), str(choose_device(device))
    network, sample = load_sample(model, weights, images, limit or 1000, label_column, place)
    about = {"weights": state_sha256(network), "images": sample.sha256()}
    click.echo(f"densefeat: {len(sample):,} of {sample.there:,} labelled images", err=True)
    done = Journal(out.with_suffix(".jsonl"), about)
    with progress_bar("removing", work_of(network), unit="connections") as advance:
        pruning = prune(network, sample, done, advance)
    write_pruning_csv(pruning, table)
    save_picture(draw_pruning(pruning, feature_reuse(network), printable(model)), out)
    _show_pruning(pruning)
    click.echo(f"wrote: {out}, {table}", err=True)


def _show_pruning(pruning: "Pruning") -> None:
    """The ends of the list, and the curves."""
    removed = pruning.removed
    rows = [
        [f"{each.block}", each.target, f"{each.source}", f"{each.accuracy_lost:+.2f}", f"{each.loss_rise:+.4f}",
         f"{each.broken} / {each.mended}", f"{each.p_value:.2g}", f"{each.mean_abs_weight:.4f}"]
        for each in (*removed[:_TOLD], *removed[max(_TOLD, len(removed) - _TOLD) :])
    ]  # fmt: skip
    _print_table(["block", "layer", "source", "points lost", "loss", "broken / mended", "p", "mean |w|"], rows)
    free = sum(each.broken == 0 for each in removed)
    costly = sum(each.p_value < 0.05 and each.accuracy_lost > 0 for each in removed)
    one = 100 / pruning.chosen_on
    click.echo(
        f"{len(removed):,} connections, each alone on {pruning.chosen_on:,} images (one is {one:.2g} points):\n"
        f"{free:,} break none that was right, {costly:,} cost something at p < 0.05 "
        "(McNemar; by chance alone up to one in forty)\n"
    )
    shares = [f"{100 * share:g} %" for share in pruning.shares]
    rows = [[name, f"{pruning.whole[1]:.1f}", *(f"{top1:.1f}" for top1 in curve)] for name, curve in pruning.curves.items()]
    _print_table([f"top-1, {pruning.drawn_on:,} other images; removed:", "0 %", *shares], rows)


def _print_table(headings: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    console.width = console.width if console.is_terminal else 200
    console.print(table)


@report.command(epilog="Example: densefeat report model densefeat_densenet_bc100_k12 --out model.html")
@click.argument("model")
@click.option("--out", required=True, metavar="FILE", help="A page, .html; Markdown, .md; or - for Markdown on the terminal.")
@click.option("--weights", type=click.Path(path_type=Path), help="A checkpoint file of your own for MODEL.")
@click.option("--runs", type=click.Path(path_type=Path), help="A folder with folders of runs, to stand in the comparison.")
def model(model: str, out: str, weights: Path | None, runs: Path | None) -> None:
    """What MODEL is: shapes, parameters, FLOPs, bytes and receptive field of its stages, its card, and how it compares.

    MODEL is a name of `densefeat models`, a DenseNet of timm, or a run's folder. Nothing is fetched. Accuracy stands against
    parameters and FLOPs, the papers' figures marked as theirs.
    """
    from densefeat.base import atomic_file
    from densefeat.errors import UsageError
    from densefeat.report import html_page, markdown_page, points_for, read_card
    from densefeat.store import check_output

    kind = Path(out).suffix.lower()
    if out != "-" and kind not in (".html", ".md"):
        raise UsageError(f"page {out!r}: its name must end in .html or .md, or be - for the terminal")
    if out != "-":
        check_output(Path(out))
    card = read_card(model, weights)
    points = points_for(card, runs)
    text = html_page(card, points) if kind == ".html" else markdown_page(card, points)
    if out == "-":
        click.echo(text, nl=False)
        return
    with atomic_file(Path(out)) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    click.echo(f"wrote: {out}", err=True)
