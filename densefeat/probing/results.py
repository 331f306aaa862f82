"""The files of a probe: results.json, predictions.csv, charts, the page, and the fitted head."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
import torch

from densefeat.base import (
    add_checksum,
    atomic_file,
    output_errors,
    write_csv,
)
from densefeat.errors import WeightsError
from densefeat.labels import Task, count_classes, decode_labels, describe_chance
from densefeat.probing.answers import make_predictions, tabulate_answers
from densefeat.probing.attentive import AttentiveHead
from densefeat.probing.candidates import Selection, describe_comparison
from densefeat.probing.certainty import summarize_certainty
from densefeat.probing.charts import draw_blocks, draw_confusion
from densefeat.probing.folder import RESULTS, check_folder, read_results, save_results, to_json
from densefeat.probing.layer_chart import draw_layers
from densefeat.probing.page import write_page
from densefeat.probing.predictions import MATRIX_CLASSES, list_confusions
from densefeat.probing.probe_file import FILE, PROBE_FILE, Probe, load_probe, save_probe
from densefeat.probing.reliability_chart import draw_reliability
from densefeat.probing.request import ProbeRequest
from densefeat.version import __version__

_PAGE, _PREDICTIONS = "report.html", "predictions.csv"
_BLOCKS, _CONFUSION, _LAYERS, _RELIABILITY = "blocks", "confusion", "layers", "reliability"  # charts
_SUFFIXES = (".png", ".svg")
_KIND = "densefeat probe"
_CHARTS = tuple(f"{stem}{suffix}" for stem in (_BLOCKS, _CONFUSION, _LAYERS, _RELIABILITY) for suffix in _SUFFIXES)
_FILES = (RESULTS, FILE, _PAGE, _PREDICTIONS, *_CHARTS)


def write_report(out: Path, selection: Selection, request: ProbeRequest) -> dict[str, Any]:
    """Write all files into a folder, each atomically and ``results.json`` last; return the content of that.

    Charts are left out where matplotlib is not installed. Raises OutputError if a file cannot be written.
    """
    results = add_checksum(_summarize(selection, request))
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    save_probe(out / FILE, _make_probe(selection, request))
    charts = [draw_blocks(out / _BLOCKS, results)]
    if selection.layers is not None:
        charts.append(draw_layers(out / _LAYERS, results))
    if selection.scores is not None:
        _write_predictions(out / _PREDICTIONS, selection, selection.scores, request)
        if selection.targets.task == "single":
            charts.append(draw_confusion(out / _CONFUSION, selection.targets, selection.scores))
        if _has_reliability(results):
            charts.append(draw_reliability(out / _RELIABILITY, results["certainty"]))
    write_page(out / _PAGE, selection, request, results, [chart for chart in charts if chart])
    save_results(out, results)
    return results


def _summarize(selection: Selection, request: ProbeRequest) -> dict[str, Any]:
    """Collect the content of results.json, in JSON types alone."""
    targets, comparison, runner_up = selection.targets, selection.comparison, selection.runner_up
    results = {
        "kind": _KIND,
        "protocol": request.protocol,
        "task": targets.task,
        "main_metric": selection.main_metric,
        "classes": list(targets.classes),
        "rows": request.sizes,
        "split_sha256": request.split_sha256,
        "seed": request.seed,
        "labels": request.labels,
        "notes": list(request.notes),
        "candidates": [report.to_json() for report in selection.reports],
        "best": selection.best.name,
        "remark": describe_chance(selection.best.test, count_classes(targets), len(targets)) if selection.best.test else None,
        "next": None if runner_up is None else runner_up.name,
        "comparison": None if comparison is None else asdict(comparison) | {"told": _describe_comparison(selection)},
        "confusions": [] if selection.scores is None else list_confusions(targets, selection.scores),
        "certainty": summarize_certainty(selection, request.seed),
        "few_shot": request.few_shot,
        "provenance": request.provenance,
        "test_provenance": request.test_provenance,
        "settings": request.settings,
        "versions": _versions(),
    }
    return to_json(results | ({} if selection.layers is None else {"layers": selection.layers}))


def _make_probe(selection: Selection, request: ProbeRequest) -> Probe:
    best, targets = selection.best, selection.targets
    record = {
        "protocol": request.protocol,
        "chosen": best.chosen,
        "name": best.name,
        "rows": request.sizes,
        "split_sha256": request.split_sha256,
        "seed": request.seed,
        "val": best.val,
        "test": best.test,
        "intervals": best.intervals,
    }
    if selection.layers is not None:
        record["layers"] = selection.layers["by_layer"]
    whole = {"pool": ["none"]} if isinstance(selection.head, AttentiveHead) else {}  # the store has pooled columns
    facts = (targets.task, targets.classes, best.columns, request.provenance | whole, selection.head, to_json(record))
    return Probe(*facts, certainty=selection.certainty)


def _describe_comparison(selection: Selection) -> str:
    """Put the comparison of the best candidate with the next one into words."""
    comparison = selection.comparison
    if comparison is None or selection.runner_up is None:
        return ""
    runner_up = f"{selection.runner_up.name} (the next best on the validation rows)"
    return describe_comparison(selection.best.name, runner_up, comparison)


def _write_predictions(path: Path, selection: Selection, scores: np.ndarray, request: ProbeRequest) -> None:
    """Write a line for each test row: path, page and a tile's x and y, label, and the columns of the answer."""
    targets = selection.targets
    columns: dict[str, Any] = {"path": request.paths}
    columns |= {name: places.tolist() for name, places in request.places.items()} | {"label": decode_labels(targets)}
    made = make_predictions(targets.task, targets.classes, scores, selection.certainty, selection.ood)
    columns |= tabulate_answers(made, scores)
    with (
        atomic_file(path) as beside,
        output_errors(path),
        open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        write_csv(file, list(columns), zip(*columns.values(), strict=True), repr(str(path)))


def _has_reliability(results: dict[str, Any]) -> bool:
    return bool((results.get("certainty") or {}).get("reliability"))  # earlier versions measured none


def _versions() -> dict[str, str]:
    return {
        "densefeat": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "scipy": scipy.__version__,
    }


def read_finished(out: Path, request: ProbeRequest) -> dict[str, Any] | None:
    """Return the results in ``out`` if it holds all files of the same probe; None if it is empty or files are missing.

    A damaged probe counts as missing. Raises UsageError if it holds anything else, WeightsError for damaged results.
    """
    check_probe_folder(out)
    results = read_results(out, "probe", request.identity())
    if results is None:
        return None
    try:
        names = _list_files(results["task"], len(results["classes"]), _has_reliability(results), "layers" in results)
    except (KeyError, TypeError, AttributeError) as error:  # of a file that says what it likes, without a checksum
        raise WeightsError(f"results {str(out / RESULTS)!r}: damaged ({error}): restore them from a copy") from error
    return results if all((out / name).exists() for name in names) and _is_intact(out / FILE) else None


def _is_intact(probe: Path) -> bool:
    try:
        load_probe(probe)
    except WeightsError:
        return False
    return True


def _list_files(task: Task, classes: int, reliability: bool = False, layers: bool = False) -> set[str]:
    """Name the files of a complete report; charts are among them only where matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401  optional
    except ImportError:
        charts = []
    else:
        charts = [_BLOCKS, _CONFUSION] if task == "single" and classes <= MATRIX_CLASSES else [_BLOCKS]
        charts += [_RELIABILITY] if reliability else []
        charts += [_LAYERS] if layers else []
    return {RESULTS, _PAGE, _PREDICTIONS, FILE} | {f"{stem}{suffix}" for stem in charts for suffix in _SUFFIXES}


def check_probe_folder(out: Path) -> None:
    """Raise UsageError if a folder holds anything but a probe, finished or not; OutputError if it cannot be read."""
    check_folder(out, "probe", _FILES, PROBE_FILE)
