"""The job of ``densefeat explain``: maps of evidence as a store, pictures of them, a table, and a page."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.base import (
    has_kind,
    is_page,
    parse_json,
    progress_bar,
    render_page,
    save_json,
    save_page,
)
from densefeat.errors import MissingColumn, UsageError
from densefeat.evaluation import ProbeNet, ResultFolder, Scorer, extract_columns, open_scorer
from densefeat.explaining.evidence import SCORES, Explainer, NetworkEvidence, ProbeEvidence, averages_maps
from densefeat.explaining.grad_cam import GradCam
from densefeat.explaining.pictures import ExplainedRow, enlarge_input, list_lines, make_drawing, make_section
from densefeat.explaining.table import ExplainedTable
from densefeat.extraction import ColumnsNet, ExtractResult
from densefeat.images import PixelRule, Preprocessing, is_image_folder
from densefeat.labels import split_label
from densefeat.overlay import name_files, save_overlays, view_input
from densefeat.probing import source_options
from densefeat.store import ImageEntry, open_store, read_entries

_MAPS, _PICTURES, _TABLE, _RECORD, _PAGE = "maps", "pictures", "explained.csv", "explained.json", "index.html"
_KIND, _TABLE_KIND = "densefeat explanations", "densefeat table of explanations"
_HEADER = re.compile(rb"path(,page)?(,x,y)?(,label)?,predicted,probability(,explained)?,score(,bias(,evidence\w*)+)?\r?\n")
_SHOWN = 60  # images on the page


@dataclass(frozen=True)
class Explained:
    """The files that :func:`explain` wrote, and what they say.

    ``store``: scores and maps, one row an image. ``pictures``: a folder with one PNG a row. ``table``: a CSV with one line an
    image. ``page``: HTML, with the worst mistakes, then the least certain predictions. ``record``: a JSON file that says what
    the maps are, with the bias of each class. ``exact``: the maps add up to the scores; else they are Grad-CAM's. ``gap``: the
    largest difference between a score and the sum of bias and evidence, over all rows and explained classes. ``mistakes``: the
    number of predictions that differ from their labels, None without labels. ``not_drawn``: pictures that could not be made,
    each with the reason.
    """

    page: Path
    table: Path
    record: Path
    store: Path
    pictures: Path
    rows: int
    failures: int
    failures_path: Path
    exact: bool
    gap: float | None
    mistakes: int | None = None
    not_drawn: dict[str, str] = field(default_factory=dict)


def explain(
    model: str,
    images: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] = (),
    weights: str | Path | None = None,
    device: str = "auto",
    batch_size: int | str = 32,
    workers: int | None = None,
    overwrite: bool = False,
    pixels: PixelRule | None = None,
    **reading: Any,
) -> Explained:
    """Show where in each image the evidence for the predicted class is; the same call resumes.

    The score of a linear head is a sum over positions, blocks and channels. For probes (all but those by nearest neighbours)
    and for networks with a linear classifier on their averaged last map, the store ``maps/`` holds the terms by position: its
    column ``evidence``, float32 ``(P, h, w)``, has a map of the predicted class, then one of each of ``classes``. With several
    labels the one with the highest score counts as predicted; in a regression, the value is explained. For a probe of several
    blocks there is a column ``evidence_BLOCK`` of each, too. The sum of a map and the bias (in ``explained.json``) is the
    score. For other heads the column is ``grad_cam``, an approximation.

    Args:
        model: The folder of a run or of a probe, a probe's file, or a model name of timm with published weights.
        images, batch_size, workers, reading: As in :func:`densefeat.extract`, but labels beside the images are read unasked,
            as :func:`densefeat.probe` reads them: the column ``label`` of a list or table, members ``.cls`` of tar files. With
            labels the page has the worst mistakes.
        out: A folder: the store ``maps/``, ``pictures/``, ``explained.csv``, ``explained.json`` and the page ``index.html``.
        classes: Names of further classes whose evidence is shown.
        overwrite: Start over if ``out`` has explanations of another model, of other images or classes.
        weights, pixels: As in :func:`densefeat.evaluation.predict`.

    Raises as :func:`densefeat.extract` does; UsageError also for an unknown class, and for a probe by nearest neighbours.
    """
    files = {_RECORD: has_kind(_KIND), _PAGE: is_page}
    folder = ResultFolder(Path(out), "explanations", _MAPS, _TABLE, _HEADER, _TABLE_KIND, files, (_PICTURES,))
    folder.refuse_strangers()
    scorer, decoder, precision = open_scorer(model, weights, device, pixels)
    named = _find_classes(scorer, classes)
    names = [scorer.classes[number] for number in named]
    if not overwrite:
        _refuse_other_classes(folder.root, names)
    explainer = _make_explainer(scorer, named)
    channels = {SCORES: scorer.outputs} | dict.fromkeys(explainer.maps, 1 + len(named))
    preprocessing = Preprocessing.for_model(scorer.net)
    net = ColumnsNet(scorer.net.recorded_name, explainer, channels, preprocessing)
    result = _extract_labelled(
        model, net, images, folder.store, device=device, batch_size=batch_size, workers=workers, decoder=decoder,
        precision=precision, overwrite=overwrite, pool="none", **reading,
    )  # fmt: skip
    store = open_store(result.path)
    told = ExplainedTable(store, scorer, explainer)
    folder.write_table(told.header, told.list_rows())
    save_json(folder.root / _RECORD, _KIND, _describe(told, names))
    shown = reading.get("base") or images  # where keys are paths
    not_drawn = _draw_pictures(told, shown, folder.root / _PICTURES, preprocessing) if len(store) else {}
    _write_page(folder.root, told)
    mistakes = told.order()[1] if told.labelled else None
    return Explained(
        folder.root / _PAGE, folder.table, folder.root / _RECORD, result.path, folder.root / _PICTURES, result.rows,
        result.failures, result.failures_path, explainer.bias is not None, told.gap, mistakes, not_drawn,
    )  # fmt: skip


def _extract_labelled(model: str, net: ColumnsNet, images: str | Path, out: Path, **options: Any) -> ExtractResult:
    """Extract images with their labels: those asked for, else those beside the images, as a probe reads them, if there are any.

    The names of folders are labels only where that is asked for. Arguments as of :func:`extract_columns`.
    """
    asked = options.get("labels") is not None or options.get("label_column") is not None
    if not asked and not is_image_folder(images):
        try:
            return extract_columns(model, net, images, out, **options | source_options(images, None, None))
        except MissingColumn:
            pass  # these images have no labels; another column that is missing is named again
    return extract_columns(model, net, images, out, **options)


def _draw_pictures(told: ExplainedTable, images: str | Path, folder: Path, preprocessing: Preprocessing) -> dict[str, str]:
    shapes = {name: told.store.shapes[name] for name in told.explainer.maps}
    named = told.explainer.named.tolist()
    view, draw = view_input(enlarge_input(preprocessing)), make_drawing(shapes, named, told.explainer.bias is not None)
    return save_overlays(told.store, images, folder, [SCORES, *shapes], view, draw)


def _find_classes(scorer: Scorer, names: Sequence[str]) -> list[int]:
    """Return the numbers of classes, each once. Raises UsageError for one that the model does not know."""
    if names and not scorer.classes:
        raise UsageError(f"class {names[0]!r}: this model predicts numbers; its evidence is that of the value")
    for name in names:
        if name not in scorer.classes:
            close = difflib.get_close_matches(name, scorer.classes, n=3, cutoff=0.5) or scorer.classes[:5]
            more = ", …" if len(close) < len(scorer.classes) else ""
            raise UsageError(f"class {name!r} is none of the model's {len(scorer.classes)}: {', '.join(close)}{more}")
    return [scorer.classes.index(name) for name in dict.fromkeys(names)]


def _refuse_other_classes(out: Path, names: list[str]) -> None:
    """Raise UsageError where finished explanations in ``out`` are of other classes besides the predicted one."""
    record = out / _RECORD
    if not record.is_file():
        return
    explained = parse_json(record.read_bytes()).get("explained")
    if isinstance(explained, list) and explained[1:] != names:
        there = ", ".join(map(str, explained[1:])) or "no class besides the predicted one"
        raise UsageError(f"output {str(out)!r} explains {there}; choose another --out, or --overwrite")


def _make_explainer(scorer: Scorer, named: Sequence[int]) -> Explainer:
    behind: Any = scorer.net.network
    if isinstance(behind, ProbeNet):
        return ProbeEvidence(behind, named)
    if averages_maps(behind, Preprocessing.for_model(scorer.net)):
        return NetworkEvidence(behind, named)
    return GradCam(behind, named)


def _describe(told: ExplainedTable, names: list[str]) -> dict[str, Any]:
    """Describe the maps, so that their sums can be compared with scores: what is added, and in which order classes are."""
    scorer, bias = told.scorer, told.explainer.bias
    return {
        "model": scorer.net.recorded_name,
        "method": "Grad-CAM" if bias is None else "evidence",
        "maps": list(told.explainer.maps),
        "explained": ["the value" if scorer.task == "regression" else "the predicted class", *names],
        "classes": scorer.classes,
        "bias": None if bias is None else [float(value) for value in bias],
        "rows": len(told.store),
        "largest_difference": told.gap,
    }


def _write_page(out: Path, told: ExplainedTable) -> None:
    order, mistakes = told.order()
    shown = order[:_SHOWN]
    entries = list(read_entries(told.store, np.arange(len(told.store))).values()) if len(told.store) else []
    files = name_files(entries)
    sections = []
    with progress_bar("page", len(shown)) as advance:
        for row in shown.tolist():
            sections.append(make_section(_tell_row(told, row, entries[row]), out / _PICTURES / files[row]))
            advance(1)
    chosen = "the least certain predictions first"
    if told.labelled:
        chosen = f"{mistakes:,} wrong of {told.labelled:,} with labels: the worst first, then the least certain predictions"
    elif told.scorer.task == "regression":
        chosen = "in the order of the input"
    title = f"{'Grad-CAM' if told.explainer.bias is None else 'Evidence'}: {Path(told.scorer.net.recorded_name).name}"
    notes = [*_describe_maps(told), f"{len(shown):,} of {len(entries):,} images, {chosen}."]
    save_page(out / _PAGE, render_page(title, notes, sections, side_by_side=True))


def _describe_maps(told: ExplainedTable) -> list[str]:
    if told.explainer.bias is None:
        return [
            "Grad-CAM of the last block: an approximation by the gradient of the score, which does not add up to it. Yellow is"
            " for the class; the scale is each picture's own."
        ]
    kind = {"single": "the predicted class", "multi": "the label with the highest score", "regression": "the value"}
    grids = " Each block's evidence is shown on the grid of the finest block." if len(told.explainer.maps) > 1 else ""
    return [
        f"The score of {kind[told.scorer.task]} is a bias and the sum of its evidence over the positions of the image, no"
        f" approximation. Red is for it, blue against it; the scale is each picture's own.{grids}",
        *([] if told.gap is None else [f"Over all images, scores and these sums differ by at most {told.gap:.1e}."]),
    ]


def _name_explained(predicted: list[str], explained: str) -> str:
    """Name the labels that were predicted, and the one that is explained unless it is one of them."""
    return ("|".join(predicted) or "no label") + ("" if explained in predicted else f" · explained: {explained}")


def _tell_row(told: ExplainedTable, row: int, entry: ImageEntry) -> ExplainedRow:
    (predicted, probability), bias = told.answers[row], told.explainer.bias
    lines = list_lines(told.chosen[row].tolist())
    chosen, values = told.chosen[row][lines], told.scores[row][lines]
    classes = [told.scorer.classes[number] for number in chosen] if told.scorer.classes else ["the value"]
    title = predicted
    if told.scorer.task == "single":
        title += f" · {100 * float(probability):.0f} %"
    elif told.scorer.task == "multi":
        title = _name_explained(split_label(predicted), classes[0])
    title += "" if entry.label is None else f" · label {entry.label}"
    if bias is None:
        scores = ", ".join(f"{name} {score:.4g}" for name, score in zip(classes, values, strict=True))
        return ExplainedRow(entry, title, f"Score: {scores}.", classes, {"Grad-CAM": ()})
    parts = told.sums[row][:, lines]
    total = [
        f"{name} {score:.4g} = bias {bias[number]:.4g} + evidence {evidence:.4g}"
        for name, number, score, evidence in zip(classes, chosen, values, parts[0], strict=True)
    ]
    headings = [name.removeprefix("evidence_") if name != "evidence" else "all" for name in told.explainer.maps]
    sums = dict(zip(headings, parts.tolist(), strict=True))
    return ExplainedRow(entry, title, "; ".join(total) + ".", classes, sums)
