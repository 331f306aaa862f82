"""The report of a segment probe as one HTML page, and its tables as text."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from densefeat.base import Chart, ImageCard, Section, Table, check_target, printable, render_page, save_page, shorten_text
from densefeat.labels import TEST
from densefeat.overlay import lay_classes, view_whole
from densefeat.probing import candidate_table, format_metric
from densefeat.segmentation.data import Annotation, DenseData
from densefeat.segmentation.fitting import DenseCandidate
from densefeat.segmentation.grid_net import add_prior, choose_classes, score_positions
from densefeat.segmentation.masks import IGNORED, ClassTable, colour_classes
from densefeat.segmentation.scores import compute_mean_iou
from densefeat.store import encode_thumbnail, make_pictures, read_entries

PAGE = "index.html"
_MAIN = "mean_iou"  # the metric by which candidates are chosen
_IMAGES = 24  # of the test images, with two pictures each
_EDGE = 320  # pixels
_LINE = 22  # pixels of the legend


def segment_table(results: dict[str, Any]) -> Table:
    """List for each candidate features, settings, and mean IoU on validation images and, with intervals, on test images."""
    return candidate_table(results | {"main_metric": _MAIN})


def class_table(results: dict[str, Any]) -> Table:
    """List each class's number in masks, and its IoU on the test images, by the best candidate, with an interval."""
    best = next(candidate for candidate in results["candidates"] if candidate["name"] == results["best"])
    rows = [
        [name, value, format_metric(_MAIN, iou, ends)]
        for (value, name), iou, ends in zip(
            results["classes"].items(), best["test"]["iou"], best["intervals"]["iou"], strict=True
        )
    ]
    return Table(["class", "number", "IoU, %"], rows)


def write_page(
    path: Path, data: DenseData, best: DenseCandidate, results: dict[str, Any], images: Sequence[str | Path]
) -> None:  # fmt: skip
    """Write the report, atomically. ``images``: the input of each store. Raises OutputError if it cannot be written."""
    check_target(path)
    pictures, problem = _show_worst(data, best, images)
    counts = ", ".join(f"{count:,} {part}" for part, count in results["images"].items())
    brackets = "; brackets are 95 % bootstrap intervals over the test images" if results["images"]["test"] > 1 else ""
    notes = [
        f"{results['protocol']}, seed {results['seed']}; images: {counts}; split {results['split_sha256'][:12]}",
        f"Blocks and settings were chosen on the validation images alone{brackets}. IoU is measured at the"
        " images' own resolution.",
        "Below are the test images with the lowest mean IoU: their masks, and what is predicted.",
        *results["notes"],
        *([f"Images could not be shown: {problem}"] if problem else []),
    ]
    sections = [
        Section("Candidates", [segment_table(results)]),
        Section(f"Classes, by {best.name}", [class_table(results), _draw_legend(data.table)]),
        *pictures,
    ]
    title = f"Segment probe of {results['provenance'].get('model', 'features')}: {best.name}"
    save_page(path, render_page(title, notes, sections, side_by_side=True), is_ours=None)


def _draw_legend(table: ClassTable) -> Chart:
    lines = [
        f'<rect x="0" y="{_LINE * number + 3}" width="16" height="16" stroke="#666" fill="{_name_colour(colour)}"/>'
        f'<text x="24" y="{_LINE * number + 16}">{escape(shorten_text(printable(name)))}</text>'
        for number, (name, colour) in enumerate(zip(table.names, colour_classes(table.values).tolist(), strict=True))
    ]
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="220" height="{_LINE * len(table.names)}"'
    svg += f' font-family="system-ui, sans-serif" font-size="14">{"".join(lines)}</svg>'
    return Chart("Colours", svg.encode(), "The colour of each class")


def _name_colour(colour: Sequence[int]) -> str:
    """Name the colour of a class; pixels of a black one are left as they are."""
    return "#{:02x}{:02x}{:02x}".format(*colour) if any(colour) else "none"


def _show_worst(
    data: DenseData, best: DenseCandidate, images: Sequence[str | Path]
) -> tuple[list[Section], str | None]:  # fmt: skip
    """Make a section for each of the worst test images, and say why images are missing, or None."""
    ratings = compute_mean_iou(best.counts)
    tested, order = data.select(TEST), np.argsort(ratings, kind="stable")  # what has no rating comes last
    worst = [tested[place] for place in order[: min(_IMAGES, np.count_nonzero(~np.isnan(ratings)))]]
    rows = {(each.source, each.row) for each in worst}
    scores = {
        (each.source, each.row): add_prior(best.fit.head, score_positions(best.fit.head, maps, data.shape), best.fit.log_prior)
        for each, maps in data.read_maps(TEST, best.columns)
        if (each.source, each.row) in rows
    }
    pictures: dict[tuple[int, int], Image.Image] = {}
    problem = None
    for source, store in enumerate(data.stores):
        entries = read_entries(store, np.array([each.row for each in worst if each.source == source], np.int64))
        view = partial(view_whole, edge=_EDGE)
        made, failure = make_pictures(store.provenance, entries.values(), images[source], view)
        pictures |= {(source, row): made[entry] for row, entry in entries.items() if entry in made}
        problem = failure or problem
    sections = []
    for each, rating in zip(worst, ratings[order].tolist(), strict=False):
        place = each.source, each.row
        title = f"{shorten_text(each.key)}: {format_metric(_MAIN, rating)} %"
        sections.append(Section(title, _make_cards(data, each, scores[place], pictures.get(place))))
    return sections, problem


def _make_cards(data: DenseData, each: Annotation, scores: np.ndarray, picture: Image.Image | None) -> list[ImageCard]:
    titles = ("mask", "predicted")
    if picture is None:
        return [ImageCard(title, each.key) for title in titles]
    truth = Image.fromarray(each.read(data.table)).resize(picture.size, Image.Resampling.NEAREST)
    masks = (np.asarray(truth), choose_classes(scores, picture.height, picture.width))
    palette = np.zeros((IGNORED + 1, 3), np.uint8)  # black, for none, is what is ignored
    palette[: len(data.table.values)] = colour_classes(data.table.values)
    drawn = [lay_classes(picture, mask, palette) for mask in masks]
    return [
        ImageCard(title, each.key, picture=encode_thumbnail(image, _EDGE)) for title, image in zip(titles, drawn, strict=True)
    ]
