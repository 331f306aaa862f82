"""``densefeat report``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densefeat import base, images, report
from densefeat import store as stores
from densefeat.base import printable
from densefeat.errors import UsageError
from densefeat_cli.options import (
    PATH_TYPE,
    epilog,
    label_column_option,
    labelled_option,
    model_argument,
    out_option,
    training_device_option,
    weights_option,
)
from densefeat_cli.output import DataOutput, print_line, print_note, print_table

if TYPE_CHECKING:
    from densefeat.report import Finding, Pruning

_ENDS = 5  # connections in the table, from either end of the list


@click.group(epilog=epilog("report reuse densefeat_densenet_bc100_k12 --out reuse.png"))
def report_command() -> None:
    """Draw pictures and pages of what a network is and does."""


@report_command.command(epilog=epilog("report reuse densefeat_densenet_bc100_k12 --out reuse.png"))
@model_argument
@out_option("Picture to write, .png or .svg; its table is written beside it, as NAME.csv.")
@weights_option
@click.option("--what", type=click.Choice(["weights", "prune"]), default="weights", show_default=True,
              help="prune: the accuracy that is lost without each connection.")  # fmt: skip
@labelled_option(
    "--images", required=False, purpose="For prune: a store, whose images are read, or labelled images", checked=False
)
@click.option("--limit", type=click.IntRange(2), help="For prune: number of images, taken evenly.  [default: 1000]")
@label_column_option("For prune: ")
@training_device_option
def reuse(model: str, out: Path, weights: Path | None, what: str, **options: Any) -> None:
    """Draw which layers read which: mean |weight| of every connection within the blocks (Figure 5 of the DenseNet paper).

    MODEL is a name of `densefeat models`, a DenseNet of timm, or a run's folder. The table says which of the paper's four
    observations hold. With --what prune, each connection is removed by itself on half of the images, and then more and more of
    them on the other half: NAME.csv lists them, the cheapest first. After an interruption the same command resumes from
    NAME.jsonl.
    """
    _check_prune_options(what, options)
    base.check_picture(out)
    stores.check_output(out, base.is_picture)
    if what == "prune":
        images.check_input(options["images"])
        _prune(model, out, weights, **options)
        return
    table = stores.choose_csv_file(out, report.REUSE_COLUMNS)
    weights_read = report.feature_reuse(report.load_known_network(model, weights))
    report.write_reuse_csv(weights_read, table)
    base.save_picture(report.draw_reuse(weights_read, printable(model)), out)
    _print_findings(report.observations(weights_read))
    print_line(f"wrote: {out}, {table}", err=True)


def _check_prune_options(what: str, options: dict[str, Any]) -> None:
    if what == "prune" and options["images"] is None:
        raise click.UsageError("--what prune needs labelled --images")
    superfluous = [name for name, value in options.items() if value is not None]
    if what != "prune" and superfluous:
        raise click.UsageError(f"--{superfluous[0].replace('_', '-')} is for --what prune")


def _print_findings(findings: "Sequence[Finding]") -> None:
    blocks = [f"block {number + 1}" for number in range(len(findings[0].values))]
    rows = []
    for finding in findings:
        values = ["" if value is None else f"{value:.3f}" for value in finding.values]
        holds = {True: "yes", False: "no", None: "–"}[finding.holds]
        rows.append([finding.observation, finding.statistic, *values, finding.condition, holds])
    headings = ["observation", "statistic", *blocks, "needs", "holds"]
    print_table(headings, rows, right=headings[1:])


def _prune(
    model: str, out: Path, weights: Path | None, images: str, limit: int | None, label_column: str | None, device: str | None
) -> None:
    from densefeat.nets import state_sha256  # loads timm, which --help does not need

    table, place = stores.choose_csv_file(out, report.PRUNING_COLUMNS), str(base.choose_device(device))
    base.check_target(out.with_suffix(".jsonl"), report.is_journal)
    network, sample = report.load_sample(model, weights, images, limit or 1000, label_column, place)
    identity = {"weights": state_sha256(network), "images": sample.sha256()}
    print_note(f"{len(sample):,} of {sample.available:,} labelled images")
    journal = report.Journal(out.with_suffix(".jsonl"), identity)
    with base.progress_bar("removing", report.count_work(network), unit="connections") as advance:
        pruning = report.prune(network, sample, journal, advance)
    report.write_pruning_csv(pruning, table)
    base.save_picture(report.draw_pruning(pruning, report.feature_reuse(network), printable(model)), out)
    _print_pruning(pruning)
    print_line(f"wrote: {out}, {table}", err=True)


def _print_pruning(pruning: "Pruning") -> None:
    """Print the connections at both ends of the list, and the curves."""
    removed = pruning.removed
    rows = [
        [f"{each.block}", each.target, f"{each.source}", f"{each.accuracy_lost:+.2f}", f"{each.loss_rise:+.4f}",
         f"{each.broken} / {each.mended}", f"{each.p_value:.2g}", f"{each.mean_abs_weight:.4f}"]
        for each in (*removed[:_ENDS], *removed[max(_ENDS, len(removed) - _ENDS) :])
    ]  # fmt: skip
    headings = ["block", "layer", "source", "points lost", "loss", "broken / mended", "p", "mean |w|"]
    print_table(headings, rows, right=headings[1:])
    free = sum(each.broken == 0 for each in removed)
    costly = sum(each.p_value < 0.05 and each.accuracy_lost > 0 for each in removed)
    one = 100 / pruning.chosen_on
    print_line(f"{len(removed):,} connections, each alone on {pruning.chosen_on:,} images (one is {one:.2g} points):")
    print_line(
        f"{free:,} break none that was right, {costly:,} cost something at p < 0.05"
        " (McNemar; by chance alone up to one in forty)"
    )
    print_line()
    shares = [f"{100 * share:g} %" for share in pruning.shares]
    rows = [[name, f"{pruning.whole[1]:.1f}", *(f"{top1:.1f}" for top1 in curve)] for name, curve in pruning.curves.items()]
    headings = [f"top-1, {pruning.drawn_on:,} other images; removed:", "0 %", *shares]
    print_table(headings, rows, right=headings[1:])


@report_command.command(epilog=epilog("report model densefeat_densenet_bc100_k12 --out model.html"))
@model_argument
@click.option("--out", required=True, metavar="FILE",
              help="Page to write, .html; Markdown, .md; or - for Markdown on the terminal.")  # fmt: skip
@weights_option
@click.option("--runs", type=PATH_TYPE, help="Folder with folders of runs, which join the comparison.")
def model(model: str, out: str, weights: Path | None, runs: Path | None) -> None:
    """Describe MODEL: shapes, parameters, FLOPs, bytes and receptive field of its stages, its card, and how it compares.

    MODEL is a name of `densefeat models`, a DenseNet of timm, or a run's folder. Nothing is downloaded. The chart shows
    accuracy against parameters and FLOPs; the papers' figures are marked.
    """
    base.check_output_name(out)
    kind = Path(out).suffix.lower()
    if out != "-" and kind not in (".html", ".md"):
        raise UsageError(f"page {out!r}: its name must end in .html or .md, or be - for the terminal")
    if out != "-":
        stores.check_output(Path(out), base.is_page if kind == ".html" else base.is_markdown)
    card = report.read_card(model, weights)
    points = report.collect_points(card, runs)
    text = report.render_html(card, points) if kind == ".html" else report.render_markdown(card, points)
    if out == "-":
        DataOutput().write(text)
        return
    if kind == ".html":
        base.save_page(Path(out), text)
    else:
        with base.atomic_file(Path(out), base.is_markdown) as temporary:
            temporary.write_text(base.MARKDOWN_MARK + text, encoding="utf-8", errors="backslashreplace")
    print_line(f"wrote: {out}", err=True)
