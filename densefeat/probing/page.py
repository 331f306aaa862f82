"""The report of a probe as one HTML page, and its tables as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densefeat.base import Chart, ImageCard, Section, Table, check_target, render_page, save_page
from densefeat.labels import decode_labels, format_remarks
from densefeat.probing.candidates import Selection
from densefeat.probing.certainty_page import certainty_sections, strange_section
from densefeat.probing.predictions import predict_labels, worst_mistakes
from densefeat.probing.request import ProbeRequest

_MISTAKES = 60
_TITLES = {
    "top1": "top-1, %",
    "top5": "top-5, %",
    "balanced_accuracy": "balanced, %",
    "macro_f1": "macro F1, %",
    "map": "mAP, %",
    "auroc": "AUROC",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
    "mean_iou": "mean IoU, %",
    "pixel_accuracy": "pixels right, %",
}
_SHARES = ("mean_iou", "pixel_accuracy")  # from 0 to 1; other metrics with a % are in per cent


def candidate_table(results: dict[str, Any], narrow: bool = False) -> Table:
    """List for each candidate its features, setting, main metric on validation rows, and test metrics with intervals.

    ``narrow``: of the test metrics, list the main one alone.
    """
    main, candidates = results["main_metric"], results["candidates"]
    tested = [name for name in _TITLES if any(name in candidate["test"] for candidate in candidates)]
    tested = [name for name in tested if name == main] if narrow else tested
    headings = ["candidate", "features", "setting", f"val {_TITLES[main]}", *(_TITLES[name] for name in tested)]
    rows = [
        [
            candidate["name"],
            f"{candidate['features']:,}",
            ", ".join(f"{name} {value:.3g}" for name, value in candidate["chosen"].items()),
            format_metric(main, candidate["val"].get(main)),
            *(format_metric(name, candidate["test"].get(name), candidate["intervals"].get(name)) for name in tested),
        ]
        for candidate in candidates
    ]
    best = [number for number, candidate in enumerate(candidates) if candidate["name"] == results["best"]]
    return Table(headings, rows, bold_rows=best)


def format_metric(name: str, value: float | None, ends: Sequence[float] | None = None) -> str:
    """Write a metric as people read it, with the ends of its interval if there is one."""
    if value is None:
        return "–"
    if ends:
        return f"{format_metric(name, value)} ({format_metric(name, ends[0])}–{format_metric(name, ends[1])})"
    if "%" in _TITLES[name]:
        return f"{100 * value if name in _SHARES else value:.1f}"
    return f"{value:.3f}" if name in ("auroc", "r2") else f"{value:.4g}"


def few_shot_table(results: dict[str, Any]) -> Table:
    """List for each candidate the mean ± standard deviation over seeds, for each number of images a class."""
    main, entries = results["main_metric"], results["few_shot"]
    shots = sorted({entry["shots"] for entry in entries})
    names = list(dict.fromkeys(entry["name"] for entry in entries))
    by_place = {(entry["name"], entry["shots"]): entry for entry in entries}
    rows = [[name, *(_format_spread(by_place.get((name, count)), main) for count in shots)] for name in names]
    return Table(["candidate", *(f"{count} a class" for count in shots)], rows)


def _format_spread(entry: dict[str, Any] | None, main: str) -> str:
    if entry is None or entry["mean"] is None:
        return "–"
    return f"{format_metric(main, entry['mean'])} ± {format_metric(main, entry['deviation'])}"


def write_page(
    path: Path, selection: Selection, request: ProbeRequest, results: dict[str, Any], charts: Sequence[Chart]
) -> str | None:
    """Write the report to ``path``, in the folder of a probe, atomically; return why images are missing from it, or None.

    Raises OutputError where it cannot be written.
    """
    check_target(path)
    mistakes, problem = _mistake_section(selection, request)
    strange, other_problem = strange_section(selection, request)
    problem = problem or other_problem
    sections = [
        Section("Candidates", [candidate_table(results)]),
        *(Section(chart.title, [chart]) for chart in charts),
        *certainty_sections(results),
        *_layer_sections(results),
        *_confusion_section(results),
        *_few_shot_section(results),
        *mistakes,
        *strange,
    ]
    title = f"Probe of {request.provenance.get('model', 'features')}: {results['best']}"
    save_page(path, render_page(title, _make_notes(results, problem), sections), is_ours=None)
    return problem


def _make_notes(results: dict[str, Any], problem: str | None) -> list[str]:
    rows, protocol = results["rows"], results["protocol"]
    lines = [
        f"{protocol['name']}, seed {results['seed']}; rows: {', '.join(f'{count:,} {part}' for part, count in rows.items())};"
        f" split {results['split_sha256'][:12]}",
        "Blocks and settings were chosen on the validation rows alone; brackets are 95 % bootstrap intervals on the test rows.",
    ]
    lines += format_remarks(results["labels"]) + results["notes"]
    if results["remark"]:
        lines.append(f"{results['best']}: {results['remark']}")
    if results["comparison"]:
        lines.append(results["comparison"]["told"])
    return lines + ([f"Images could not be shown: {problem}"] if problem else [])


def _layer_sections(results: dict[str, Any]) -> list[Section]:
    """Return how the head on chosen features compares with heads on blocks, if the protocol is ``layers``."""
    if "layers" not in results:
        return []
    told = results["layers"]
    resamples, main = told["resamples"], results["main_metric"]
    text = f"{told['kept']:,} of {told['features']:,} features are kept."
    if resamples["number"]:
        text += (
            f" Of these, {100 * resamples['agreement']:.0f} % are kept on average by fits on {resamples['number']} resamples of"
            f" {resamples['rows']:,} training rows, whose 2.5 and 97.5 % are the intervals of the layers."
        )
    rows = [
        [
            f"{entry['with']} ({entry['role']})",
            f"{entry['difference']:+.4g} ({entry['interval'][0]:+.4g} to {entry['interval'][1]:+.4g})",
            f"{entry['p_value']:.3g} ({entry['test']})",
        ]
        for entry in told["comparisons"]
    ]
    title = f"{results['best']} compared on the same test rows"
    return [Section(title, [Table(("with", f"difference, {_TITLES[main]}", "p"), rows)], text)]


def _confusion_section(results: dict[str, Any]) -> list[Section]:
    pairs = results["confusions"]
    if not pairs:
        return []
    rows = [
        (pair["label"], pair["predicted"], f"{pair['rows']:,}", f"{100 * pair['rows'] / pair['of']:.1f} %") for pair in pairs
    ]
    return [Section("Most often taken for another class", [Table(("label", "predicted", "rows", "of its rows"), rows)])]


def _few_shot_section(results: dict[str, Any]) -> list[Section]:
    if not results["few_shot"]:
        return []
    title = f"Few shots: {_TITLES[results['main_metric']]}, mean ± standard deviation over seeds"
    return [Section(title, [few_shot_table(results)])]


def _mistake_section(selection: Selection, request: ProbeRequest) -> tuple[list[Section], str | None]:
    """Return the best candidate's worst mistakes on the test rows, and why their images are missing, or None."""
    targets, scores = selection.targets, selection.calibrated
    if scores is None:
        return [], None
    chosen = worst_mistakes(targets, scores, _MISTAKES)
    if not len(chosen):
        return [], None
    labels = decode_labels(targets.take(chosen))
    guesses, confidences = predict_labels(targets.task, targets.classes, scores[chosen])
    entries, pictures, problem = request.show_images(chosen.tolist(), labels)
    cards = []
    for entry, guess, confidence in zip(entries, guesses, confidences.tolist(), strict=True):
        heading, remark = guess, ""
        if targets.task == "regression":
            heading = f"{guess} ({confidence - float(str(entry.label)):+.4g})"
        elif targets.task == "single":
            remark = f" · {100 * confidence:.0f} %"
        cards.append(ImageCard(heading, remark=remark, picture=pictures.get(entry), **vars(entry)))
    order = {"single": "surest in a wrong class", "multi": "largest loss", "regression": "largest error"}[targets.task]
    return [Section(f"Worst mistakes of {selection.best.name} on the test rows: {order}", cards)], problem
