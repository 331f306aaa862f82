"""What a probe leaves behind: results, charts, predictions, a page, and the fitted head."""

import csv
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
import torch

from densefeat.base import atomic_file, output_errors
from densefeat.labels import Targets, Task, names_of
from densefeat.probe.candidates import Concluded
from densefeat.probe.charts import draw_blocks, draw_confusion
from densefeat.probe.page import write_page
from densefeat.probe.predictions import MATRIX_CLASSES, confusions, likelihoods, predicted
from densefeat.probe.probe_file import FILE, Probe, save_probe
from densefeat.probe.request import ProbeRequest
from densefeat.version import __version__

RESULTS, PAGE, PREDICTIONS = "results.json", "report.html", "predictions.csv"
BLOCKS, CONFUSION = "blocks", "confusion"
SUFFIXES = (".png", ".svg")  # of charts
KIND = "densefeat probe"


def write_report(out: Path, concluded: Concluded, asked: ProbeRequest) -> dict[str, Any]:
    """Everything into a folder, each file whole or not at all, ``results.json`` last; returns what is in that.

    Charts are left out where matplotlib is not installed. Raises OutputError where a file cannot be written.
    """
    results = _results_of(concluded, asked)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    save_probe(out / FILE, _probe_of(concluded, asked))
    charts = draw_blocks(out / BLOCKS, results)
    confusion = None
    if concluded.scores is not None:
        _write_predictions(out / PREDICTIONS, concluded.targets, concluded.scores, asked)
        if concluded.targets.task == "single":
            confusion = draw_confusion(out / CONFUSION, concluded.targets, concluded.scores)
    write_page(out / PAGE, concluded, asked, results, [picture for picture in (charts, confusion) if picture])
    with atomic_file(out / RESULTS) as beside:
        beside.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")
    return results


def files_of(task: Task, classes: int) -> set[str]:
    """Names of all that a whole report has, where the test rows are known; of charts only where matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        pictures = []
    else:
        pictures = [BLOCKS, CONFUSION] if task == "single" and classes <= MATRIX_CLASSES else [BLOCKS]
    charts = {f"{stem}{suffix}" for stem in pictures for suffix in SUFFIXES}
    return {RESULTS, PAGE, PREDICTIONS, FILE} | charts


def _results_of(concluded: Concluded, asked: ProbeRequest) -> dict[str, Any]:
    """JSON types alone."""
    targets = concluded.targets
    found = {
        "kind": KIND,
        "protocol": asked.protocol,
        "task": targets.task,
        "main_metric": concluded.main,
        "classes": list(targets.classes),
        "rows": asked.sizes,
        "split_sha256": asked.split_sha256,
        "seed": asked.seed,
        "labels": asked.labels,
        "notes": list(asked.notes),
        "candidates": [outcome.to_json() for outcome in concluded.outcomes],
        "best": concluded.winner.name,
        "next": None if concluded.next is None else concluded.outcomes[concluded.next].name,
        "comparison": None if concluded.comparison is None else asdict(concluded.comparison) | {"told": _verdict(concluded)},
        "confusions": [] if concluded.scores is None else confusions(targets, concluded.scores),
        "few_shot": asked.few_shot,
        "provenance": asked.provenance,
        "test_provenance": asked.test_provenance,
        "settings": asked.settings,
        "versions": _versions(),
    }
    return plain(found)


def _probe_of(concluded: Concluded, asked: ProbeRequest) -> Probe:
    best, targets = concluded.winner, concluded.targets
    told = {
        "protocol": asked.protocol,
        "chosen": best.chosen,
        "name": best.name,
        "rows": asked.sizes,
        "split_sha256": asked.split_sha256,
        "seed": asked.seed,
        "val": best.val,
        "test": best.test,
        "intervals": best.intervals,
    }
    return Probe(targets.task, targets.classes, best.columns, asked.provenance, concluded.head, plain(told))


def _verdict(concluded: Concluded) -> str:
    """The comparison of the best with the next, in words."""
    comparison = concluded.comparison
    if comparison is None or concluded.next is None:
        return ""
    best, other = concluded.winner.name, concluded.outcomes[concluded.next].name
    low, high = comparison.interval
    sure = "a difference" if comparison.p_value < 0.05 else "no difference that these rows can show"
    return (
        f"{best} less {other}, next best on the validation rows: {comparison.metric} {comparison.difference:+.4g}"
        f" ({low:+.4g} to {high:+.4g}), p = {comparison.p_value:.3g} ({comparison.test}): {sure}"
    )


def _write_predictions(path: Path, targets: Targets, scores: np.ndarray, asked: ProbeRequest) -> None:
    """A line for each test row: path, x and y of a tile, label, prediction, and its score."""
    places = [] if asked.places is None else ["x", "y"]
    with (
        atomic_file(path) as beside,
        output_errors(path),
        open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", *places, "label", "predicted", "score"])
        guesses, sure = predicted(targets.task, targets.classes, scores)
        rows = zip(asked.paths, names_of(targets), guesses, likelihoods(targets.task, scores, sure), strict=True)
        for row, (key, label, guess, score) in enumerate(rows):
            writer.writerow([key, *([] if asked.places is None else asked.places[row].tolist()), label, guess, score])


def _versions() -> dict[str, str]:
    return {
        "densefeat": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "scipy": scipy.__version__,
    }


def plain(value: Any) -> Any:
    """As JSON has it: no numpy, no tuples, nothing that is not finite (null)."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
