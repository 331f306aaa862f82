"""The job of ``densefeat explain``: maps of evidence as a store, pictures of them, a table, and a page."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densefeat.base import has_kind, is_page, parse_json, save_json
from densefeat.errors import MissingColumn, UsageError
from densefeat.evaluation import ProbeNet, ResultFolder, Results, Scorer, open_scorer
from densefeat.explaining.evidence import SCORES, Explainer, NetworkEvidence, ProbeEvidence, averages_maps
from densefeat.explaining.grad_cam import GradCam
from densefeat.explaining.page import write_page
from densefeat.explaining.pictures import enlarge_input, make_drawing
from densefeat.explaining.table import ExplainedTable
from densefeat.extraction import ColumnsNet, ExtractResult
from densefeat.images import PixelRule, Preprocessing, is_image_folder
from densefeat.overlay import save_overlays, view_input
from densefeat.probing import source_options
from densefeat.store import open_store

_MAPS, _PICTURES, _TABLE, _RECORD, _PAGE = "maps", "pictures", "explained.csv", "explained.json", "index.html"
_KIND, _TABLE_KIND = "densefeat explanations", "densefeat table of explanations"
_HEADER = re.compile(rb"path(,page)?(,x,y)?(,label)?,predicted,probability(,explained)?,score(,bias(,evidence\w*)+)?\r?\n")


@dataclass(frozen=True, kw_only=True)
class Explained(Results):
    """The files that :func:`explain` wrote, and what they say.

    ``store``: scores and maps. ``pictures``: a folder with one PNG a row. ``page``: HTML, with the worst mistakes, then the
    least certain predictions. ``record``: a JSON file that says what the maps are, with the bias of each class. ``exact``:
    the maps add up to the scores; else they are Grad-CAM's. ``gap``: the largest difference between a score and the sum of bias
    and evidence, over all rows and explained classes. ``mistakes``: the number of predictions that differ from their labels,
    None without labels.
    """

    page: Path
    record: Path
    pictures: Path
    exact: bool
    gap: float | None
    mistakes: int | None


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
    scorer = open_scorer(model, weights, device, pixels)
    named = _find_classes(scorer, classes)
    names = [scorer.classes[number] for number in named]
    if not overwrite:
        _refuse_other_classes(folder.root, names)
    explainer = _make_explainer(scorer, named)
    channels = {SCORES: scorer.outputs} | dict.fromkeys(explainer.maps, 1 + len(named))
    preprocessing = Preprocessing.for_model(scorer.net)
    net = ColumnsNet(
        scorer.net.recorded_name, explainer, channels, preprocessing, scorer.net.recorded_precision
    )  # fmt: skip
    result = _extract_labelled(
        folder, model, net, images, device=device, batch_size=batch_size, workers=workers, decoder=scorer.decoder,
        overwrite=overwrite, pool="none", **reading,
    )  # fmt: skip
    store = open_store(result.path)
    told = ExplainedTable(store, scorer, explainer)
    folder.write_table(told.header, told.list_rows())
    page, record, pictures = (folder.root / name for name in (_PAGE, _RECORD, _PICTURES))
    save_json(record, _KIND, _describe(told, names))
    shown = reading.get("base") or images  # where keys are paths
    not_drawn = _draw_pictures(told, shown, pictures, preprocessing) if len(store) else {}
    write_page(page, told, pictures)
    return Explained(
        **folder.describe(result), not_drawn=not_drawn, page=page, record=record, pictures=pictures,
        exact=explainer.bias is not None, gap=told.gap, mistakes=told.order()[1] if told.labelled else None,
    )  # fmt: skip


def _extract_labelled(
    folder: ResultFolder, model: str, net: ColumnsNet, images: str | Path, **options: Any
) -> ExtractResult:  # fmt: skip
    """Extract images with their labels: those asked for, else those beside the images, as a probe reads them, if there are any.

    The names of folders are labels only where that is asked for.
    """
    asked = options.get("labels") is not None or options.get("label_column") is not None
    if not asked and not is_image_folder(images):
        try:
            return folder.extract(model, net, images, **options | source_options(images, None, None))
        except MissingColumn:
            pass  # these images have no labels; another column that is missing is named again
    return folder.extract(model, net, images, **options)


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
