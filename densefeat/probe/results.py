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
from densefeat.errors import UsageError
from densefeat.labels import Targets, Task, decode_labels
from densefeat.probe.candidates import Selection
from densefeat.probe.charts import draw_blocks, draw_confusion
from densefeat.probe.page import write_page
from densefeat.probe.predictions import MATRIX_CLASSES, format_probabilities, list_confusions, predict_labels
from densefeat.probe.probe_file import FILE, Probe, save_probe
from densefeat.probe.request import ProbeRequest, identity
from densefeat.version import __version__

RESULTS, PAGE, PREDICTIONS = "results.json", "report.html", "predictions.csv"
BLOCKS, CONFUSION = "blocks", "confusion"
SUFFIXES = (".png", ".svg")  # of charts
KIND = "densefeat probe"
FEATURES, TEST_FEATURES = "features", "test-features"  # stores beside the results, where images were given
_PICTURES = tuple(f"{stem}{suffix}" for stem in (BLOCKS, CONFUSION) for suffix in SUFFIXES)
_OURS = {RESULTS, FILE, PAGE, PREDICTIONS, *_PICTURES, FEATURES, TEST_FEATURES}


def write_report(out: Path, concluded: Selection, asked: ProbeRequest) -> dict[str, Any]:
    """Everything into a folder, each file whole or not at all, ``results.json`` last; returns what is in that.

    Charts are left out where matplotlib is not installed. Raises OutputError where a file cannot be written.
    """
    results = _summarize(concluded, asked)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    save_probe(out / FILE, _make_probe(concluded, asked))
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


def list_files(task: Task, classes: int) -> set[str]:
    """Names of all that a whole report has, where the test rows are known; of charts only where matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        pictures = []
    else:
        pictures = [BLOCKS, CONFUSION] if task == "single" and classes <= MATRIX_CLASSES else [BLOCKS]
    charts = {f"{stem}{suffix}" for stem in pictures for suffix in SUFFIXES}
    return {RESULTS, PAGE, PREDICTIONS, FILE} | charts


def _summarize(concluded: Selection, asked: ProbeRequest) -> dict[str, Any]:
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
        "comparison": None
        if concluded.comparison is None
        else asdict(concluded.comparison) | {"told": _describe_comparison(concluded)},
        "confusions": [] if concluded.scores is None else list_confusions(targets, concluded.scores),
        "few_shot": asked.few_shot,
        "provenance": asked.provenance,
        "test_provenance": asked.test_provenance,
        "settings": asked.settings,
        "versions": _versions(),
    }
    return to_json(found)


def _make_probe(concluded: Selection, asked: ProbeRequest) -> Probe:
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
    return Probe(targets.task, targets.classes, best.columns, asked.provenance, concluded.head, to_json(told))


def _describe_comparison(concluded: Selection) -> str:
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
        guesses, sure = predict_labels(targets.task, targets.classes, scores)
        rows = zip(asked.paths, decode_labels(targets), guesses, format_probabilities(targets.task, scores, sure), strict=True)
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


def to_json(value: Any) -> Any:
    """As JSON has it: no numpy, no tuples, nothing that is not finite (null)."""
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if isinstance(value, np.generic | np.ndarray):
        return to_json(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_finished(out: Path, asked: ProbeRequest) -> dict[str, Any] | None:
    """The results of the same probe, where ``out`` has all of it; None where it is free, or files have gone.

    UsageError: it holds something else.
    """
    check_folder(out)
    if not (out / RESULTS).exists():
        return None
    shown = repr(str(out))
    try:
        before = json.loads((out / RESULTS).read_text(encoding="utf-8"))
        kind = before.get("kind")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != KIND:
        raise UsageError(f"output {shown}: its {RESULTS} is not of a probe: name another --out")
    now = to_json(identity(vars(asked)))
    if differing := [name for name, value in now.items() if before.get(name) != value]:
        raise UsageError(f"output {shown} holds another probe ({', '.join(differing)} differ): name another --out")
    whole = list_files(before["task"], len(before["classes"]))
    return before if all((out / name).exists() for name in whole) else None


def check_folder(out: Path) -> None:
    """UsageError where a folder holds something else than a probe, whole or begun; OutputError: it cannot be read."""
    with output_errors(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"output {str(out)!r} is a file: name a folder")
        there = sorted(entry.name for entry in out.iterdir() if entry.name[0] != ".") if out.exists() else []
    if others := [name for name in there if name not in _OURS]:
        raise UsageError(f"output {str(out)!r} holds something else than a probe ({others[0]!r}): name another --out")
