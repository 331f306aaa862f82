"""The page of explanations: the worst mistakes, then the least certain predictions, each with its picture and its sums."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from densefeat.base import ImageCard, Section, render_page, save_page
from densefeat.explaining.evidence import EVIDENCE
from densefeat.explaining.pictures import list_lines
from densefeat.explaining.table import ExplainedTable
from densefeat.labels import split_label
from densefeat.overlay import name_files
from densefeat.store import ImageEntry, encode_thumbnail, read_entries

_SHOWN = 60  # images
_KINDS = {"single": "the predicted class", "multi": "the label with the highest score", "regression": "the value"}


def write_page(path: Path, told: ExplainedTable, pictures: Path) -> None:
    """Write the page. ``pictures``: the folder of what :func:`make_drawing` drew; one that is missing is a grey box."""
    order, mistakes = told.order()
    entries = list(read_entries(told.store).values())
    files = name_files(entries)
    sections = [_make_section(told, row, entries[row], pictures / files[row]) for row in order[:_SHOWN].tolist()]
    chosen = "the least certain predictions first"
    if told.labelled:
        chosen = f"{mistakes:,} wrong of {told.labelled:,} with labels: the worst first, then the least certain predictions"
    elif told.scorer.task == "regression":
        chosen = "in the order of the input"
    title = f"{'Grad-CAM' if told.explainer.bias is None else 'Evidence'}: {Path(told.scorer.net.recorded_name).name}"
    notes = [*_describe_maps(told), f"{len(sections):,} of {len(entries):,} images, {chosen}."]
    save_page(path, render_page(title, notes, sections, side_by_side=True))


def _describe_maps(told: ExplainedTable) -> list[str]:
    if told.explainer.bias is None:
        return [
            "Grad-CAM of the last block: an approximation by the gradient of the score, which does not add up to it. Yellow is"
            " for the class; the scale is each picture's own."
        ]
    grids = " Each block's evidence is shown on the grid of the finest block." if len(told.explainer.maps) > 1 else ""
    return [
        f"The score of {_KINDS[told.scorer.task]} is a bias and the sum of its evidence over the positions of the image, no"
        f" approximation. Red is for it, blue against it; the scale is each picture's own.{grids}",
        *([] if told.gap is None else [f"Over all images, scores and these sums differ by at most {told.gap:.1e}."]),
    ]


def _make_section(told: ExplainedTable, row: int, entry: ImageEntry, picture: Path) -> Section:
    """Show an image and, for each explained class, its maps with their sums."""
    lines, bias = list_lines(told.chosen[row].tolist()), told.explainer.bias
    chosen, scores = told.chosen[row][lines], told.scores[row][lines]
    classes = [told.scorer.classes[number] for number in chosen] if told.scorer.classes else ["the value"]
    title = _name_row(told, row, classes[0]) + ("" if entry.label is None else f" · label {entry.label}")
    if bias is None:
        text = "Score: " + ", ".join(f"{name} {score:.4g}" for name, score in zip(classes, scores, strict=True))
        remarks = {"Grad-CAM": [""] * len(classes)}
    else:
        sums = told.sums[row][:, lines]
        text = "; ".join(
            f"{name} {score:.4g} = bias {bias[number]:.4g} + evidence {evidence:.4g}"
            for name, number, score, evidence in zip(classes, chosen, scores, sums[0], strict=True)
        )
        headings = [name.removeprefix(f"{EVIDENCE}_") if name != EVIDENCE else "all" for name in told.explainer.maps]
        remarks = {heading: [f" {each:+.3g}" for each in of_map] for heading, of_map in zip(headings, sums, strict=True)}
    return Section(title, _make_cards(entry, classes, remarks, picture), f"{text}.")


def _name_row(told: ExplainedTable, row: int, explained: str) -> str:
    """Name what was predicted, with its probability or, of several labels, with the explained one if it is none of them."""
    predicted, probability = told.answers[row]
    if told.scorer.task == "single":
        return f"{predicted} · {100 * float(probability):.0f} %"
    if told.scorer.task == "regression":
        return predicted
    labels = split_label(predicted)
    return ("|".join(labels) or "no label") + ("" if explained in labels else f" · explained: {explained}")


def _make_cards(
    entry: ImageEntry, classes: Sequence[str], remarks: Mapping[str, Sequence[str]], picture: Path
) -> list[ImageCard]:  # fmt: skip
    """Make a row of cards for each class: the image, then its maps. ``remarks``: on each map, by its name, for each class."""
    panels = _cut_picture(picture, len(classes), 1 + len(remarks))
    cards = []
    for line, name in enumerate(classes):
        cards.append(ImageCard("image", picture=panels[line][0], starts_row=True, **vars(entry)))
        for (heading, texts), panel in zip(remarks.items(), panels[line][1:], strict=True):
            cards.append(ImageCard(heading, f"for {name}", remark=texts[line], picture=panel))
    return cards


def _cut_picture(picture: Path, lines: int, columns: int) -> list[list[str | None]]:
    """Cut a picture into its panels, as thumbnails; None for each where there is no picture."""
    if not picture.is_file():
        return [[None] * columns] * lines
    with Image.open(picture) as sheet:
        edge = sheet.height // lines
        corners = [[(edge * column, edge * line) for column in range(columns)] for line in range(lines)]
        return [[encode_thumbnail(sheet.crop((x, y, x + edge, y + edge))) for x, y in line] for line in corners]
