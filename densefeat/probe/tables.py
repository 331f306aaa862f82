"""The candidates as rows of text, for terminals and pages alike, from results.json."""

from typing import Any

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


def cells(results: dict[str, Any], narrow: bool = False) -> Table:
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


def few_shot_cells(results: dict[str, Any]) -> Table:
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
