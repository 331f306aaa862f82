"""The report of a probe as one HTML page, and its tables as text."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from densefeat.base import atomic_file, output_errors
from densefeat.labels import decode_labels, format_remarks
from densefeat.probe.candidates import Selection
from densefeat.probe.charts import Picture
from densefeat.probe.predictions import predict_labels, worst_mistakes
from densefeat.probe.request import ProbeRequest
from densefeat.search import Entry, format_card, format_page, format_section
from densefeat.store import thumbnails_by

TITLES = {
    "top1": "top-1, %",
    "top5": "top-5, %",
    "balanced_accuracy": "balanced, %",
    "macro_f1": "macro F1, %",
    "map": "mAP, %",
    "auroc": "AUROC",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
}


Table = tuple[list[str], list[list[str]]]  # headings, rows


def candidate_table(results: dict[str, Any], narrow: bool = False) -> Table:
    """A row for each candidate: name, features, setting, main metric on validation rows, test metrics with intervals.

    ``narrow``: of the test metrics the main one alone.
    """
    main, candidates = results["main_metric"], results["candidates"]
    tested = [name for name in TITLES if any(name in candidate["test"] for candidate in candidates)]
    tested = [name for name in tested if name == main] if narrow else tested
    headings = ["candidate", "features", "setting", f"val {TITLES[main]}", *(TITLES[name] for name in tested)]
    rows = [
        [
            candidate["name"],
            f"{candidate['features']:,}",
            ", ".join(f"{name} {value:.3g}" for name, value in candidate["chosen"].items()),
            _number(candidate["val"].get(main), main),
            *(_with_interval(candidate, name) for name in tested),
        ]
        for candidate in candidates
    ]
    return headings, rows


def _with_interval(candidate: dict[str, Any], name: str) -> str:
    value, ends = candidate["test"].get(name), candidate["intervals"].get(name)
    if value is None or not ends:
        return _number(value, name)
    return f"{_number(value, name)} ({_number(ends[0], name)}–{_number(ends[1], name)})"


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    if "%" in TITLES[name]:
        return f"{value:.1f}"
    return f"{value:.3f}" if name in ("auroc", "r2") else f"{value:.4g}"


def few_shot_table(results: dict[str, Any]) -> Table:
    """A row for each candidate: mean ± standard deviation over the seeds, for each number of images a class."""
    main, found = results["main_metric"], results["few_shot"]
    shots = sorted({entry["shots"] for entry in found})
    names = list(dict.fromkeys(entry["name"] for entry in found))
    by_place = {(entry["name"], entry["shots"]): entry for entry in found}
    rows = []
    for name in names:
        entries = [by_place.get((name, count)) for count in shots]
        rows.append([name, *(_spread(entry, main) for entry in entries)])
    return ["candidate", *(f"{count} a class" for count in shots)], rows


def _spread(entry: dict[str, Any] | None, main: str) -> str:
    if entry is None or entry["mean"] is None:
        return "–"
    return f"{_number(entry['mean'], main)} ± {_number(entry['deviation'], main)}"


_MISTAKES = 60
STYLE = """
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 4px 14px 4px 0; text-align: right; vertical-align: top; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
tr.best { font-weight: 600; }
.wide { overflow-x: auto; }
.chart { background: #fff; border-radius: 6px; max-width: 100%; padding: 8px; }
.chart img { display: block; height: auto; max-width: 100%; }
"""


def write_page(
    path: Path, concluded: Selection, asked: ProbeRequest, results: dict[str, Any], pictures: Sequence[Picture]
) -> str | None:
    """A page at ``path``, whole or not at all; returns why images could not be shown, or None.

    Raises OutputError where it cannot be written.
    """
    mistakes, problem = _mistake_section(concluded, asked)
    sections = [
        _table_section(results),
        *map(format_picture, pictures),
        *_confusion_section(results),
        *_few_shot_section(results),
    ]
    title = f"Probe of {asked.provenance.get('model', 'features')}: {results['best']}"
    with (
        atomic_file(path) as beside,
        output_errors(path),
        open(beside, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(format_page(title, _make_notes(results, problem), [*sections, *mistakes], style=STYLE))
    return problem


def _make_notes(results: dict[str, Any], problem: str | None) -> list[str]:
    rows, protocol = results["rows"], results["protocol"]
    lines = [
        f"{protocol['name']}, seed {results['seed']}; rows: {', '.join(f'{count:,} {part}' for part, count in rows.items())};"
        f" split {results['split_sha256'][:12]}",
        "Blocks and settings were chosen on the validation rows alone; brackets are 95 % bootstrap intervals on the test rows.",
    ]
    lines += format_remarks(results["labels"]) + results["notes"]
    if results["comparison"]:
        lines.append(results["comparison"]["told"])
    return lines + ([f"Images could not be shown: {problem}"] if problem else [])


def _table_section(results: dict[str, Any]) -> str:
    names, rows = candidate_table(results)
    marked = [candidate["name"] == results["best"] for candidate in results["candidates"]]
    return format_section("Candidates", [format_table(names, rows, marked)])


def format_table(names: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for number, row in enumerate(rows):
        kind = ' class="best"' if number < len(marked) and marked[number] else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td><bdi>{escape(cell)}</bdi></td>" for cell in row) + "</tr>\n")
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{"".join(lines)}</table></div>\n'


def format_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode("ascii")
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(picture.alt)}">'
    return format_section(picture.title, [f'<div class="chart">{image}</div>\n'])


def _confusion_section(results: dict[str, Any]) -> list[str]:
    pairs = results["confusions"]
    if not pairs:
        return []
    rows = [
        (pair["label"], pair["predicted"], f"{pair['rows']:,}", f"{100 * pair['rows'] / pair['of']:.1f} %") for pair in pairs
    ]
    return [
        format_section(
            "Most often taken for another class", [format_table(["label", "predicted", "rows", "of its rows"], rows)]
        )
    ]


def _few_shot_section(results: dict[str, Any]) -> list[str]:
    if not results["few_shot"]:
        return []
    title = f"Few shots: {TITLES[results['main_metric']]}, mean ± standard deviation over seeds"
    return [format_section(title, [format_table(*few_shot_table(results))])]


def _mistake_section(concluded: Selection, asked: ProbeRequest) -> tuple[list[str], str | None]:
    """The worst mistakes of the best candidate on the test rows, with their images where these are to be had."""
    targets, scores = concluded.targets, concluded.scores
    if scores is None:
        return [], None
    chosen = worst_mistakes(targets, scores, _MISTAKES)
    if not len(chosen):
        return [], None
    labels = decode_labels(targets.take(chosen))
    guesses, sure = predict_labels(targets.task, targets.classes, scores[chosen])
    entries = []
    for row, label in zip(chosen.tolist(), labels, strict=True):
        x, y = (None, None) if asked.places is None else asked.places[row].tolist()
        entries.append(Entry(asked.paths[row], label, x, y))
    made, problem = thumbnails_by(asked.test_provenance or asked.provenance, entries, asked.images)
    cards = [
        format_card(entry, made.get(entry), _heading(targets.task, guess, value, label))
        for entry, guess, value, label in zip(entries, guesses, sure.tolist(), labels, strict=True)
    ]
    titles = {"single": "surest in a wrong class", "multi": "largest loss", "regression": "largest error"}
    return [
        format_section(f"Worst mistakes of {concluded.winner.name} on the test rows: {titles[targets.task]}", cards)
    ], problem


def _heading(task: str, guess: str, value: float, label: str) -> str:
    """HTML."""
    if task == "regression":
        return f"{escape(guess)} ({value - float(label):+.4g})"
    more = f" · {100 * value:.0f} %" if task == "single" else ""
    return f"<bdi>{escape(guess)}</bdi>{more}"
