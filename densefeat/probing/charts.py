"""Charts of a probe: candidates with their intervals, and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densefeat.base import Chart, printable
from densefeat.labels import Targets
from densefeat.probing.candidates import ATTENTIVE
from densefeat.probing.predictions import MATRIX_CLASSES, confusion_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"top1": "top-1, %", "map": "mean average precision, %", "r2": "R²"}
_NAME_LENGTH = 26
_NAMED_CLASSES = 40  # the most names that can be read on an axis
_COUNTED_CLASSES = 15
_BLOCK, _GREEDY, _LAYERS, _POOLED = "#1f77b4", "#d95f02", "#7b3294", "#1b9e77"


def draw_blocks(stem: Path, results: dict[str, Any]) -> Chart | None:
    """Draw the candidates in results.json to ``stem``.png and .svg; None if matplotlib is not installed.

    Left: each candidate; right: the main metric by the number of features. With 95 % intervals, if results have them.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    candidates, main = results["candidates"], results["main_metric"]
    figure = Figure(figsize=(11, max(3.6, 1.3 + 0.3 * len(candidates))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharex=False)
    _draw_ranking(left, results)
    _draw_curve(right, results)
    title = TITLES[main] + ", " + ("test rows" if candidates[0]["test"] else "validation rows")
    left.set_xlabel(title)
    right.set(xlabel="features", ylabel=title)
    best = results["best"]
    return Chart("By block", save_chart(figure, stem), f"{TITLES[main]} of {len(candidates)} candidates; the best is {best}")


def _draw_ranking(axes: "Axes", results: dict[str, Any]) -> None:
    """Draw a line for each candidate, in the order of the table."""
    candidates = results["candidates"]
    for place, candidate in enumerate(candidates):
        value, low, high = _value_and_interval(candidate, results["main_metric"])
        axes.errorbar(
            [value], [place], xerr=[[value - low], [high - value]], fmt="o", color=_choose_colour(candidate), capsize=3
        )
        axes.annotate(
            f"{value:.3g}" if abs(value) <= 1 else f"{value:.1f}",
            (high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    names = [short_name(candidate["name"]) for candidate in candidates]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    for tick, candidate in zip(axes.get_yticklabels(), candidates, strict=True):
        tick.set_fontweight("bold" if candidate["name"] == results["best"] else "normal")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)


def _draw_curve(axes: "Axes", results: dict[str, Any]) -> None:
    """Draw single blocks and attentive heads as points, and blocks added one by one as a line."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    candidates, main = results["candidates"], results["main_metric"]
    linear = [candidate for candidate in candidates if _is_linear(candidate)]
    single = [candidate for candidate in linear if len(candidate["columns"]) == 1]
    several = sorted((candidate for candidate in linear if len(candidate["columns"]) > 1), key=lambda c: len(c["columns"]))
    _draw_points(axes, single, main, "o", _BLOCK, "one block")
    start = [candidate for candidate in single if several and set(candidate["columns"]) <= set(several[0]["columns"])]
    start = sorted(start, key=lambda c: -(c["val"].get(main) or -np.inf))[:1]
    if several:
        path = [(candidate["features"], _value_and_interval(candidate, main)[0]) for candidate in [*start, *several]]
        axes.plot(*zip(*path, strict=True), color=_GREEDY, linewidth=1, zorder=1)
        _draw_points(axes, several, main, "s", _GREEDY, "blocks added one by one")
    for is_kind, mark, colour, label in _KINDS:
        if own := [candidate for candidate in candidates if is_kind(candidate)]:
            _draw_points(axes, own, main, mark, colour, label)
    widths = [candidate["features"] for candidate in candidates]
    if max(widths) > 4 * min(widths):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=8))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_points(axes: "Axes", candidates: list[dict[str, Any]], main: str, marker: str, color: str, label: str) -> None:
    values = np.array([_value_and_interval(candidate, main) for candidate in candidates]).reshape(-1, 3)
    spread = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
    widths = [candidate["features"] for candidate in candidates]
    axes.errorbar(widths, values[:, 0], yerr=spread, fmt=marker, color=color, label=label, capsize=3, markersize=5)


def _value_and_interval(candidate: dict[str, Any], main: str) -> tuple[float, float, float]:
    """Return a candidate's main metric on the test rows (or else the validation rows; 0 if undefined) with its interval."""
    value = (candidate["test"] or candidate["val"]).get(main)
    value = 0.0 if value is None else value
    low, high = candidate["intervals"].get(main) or (value, value)
    return value, min(low, value), max(high, value)


def _is_attentive(candidate: dict[str, Any]) -> bool:
    return str(candidate["name"]).endswith(ATTENTIVE)


def _selects_features(candidate: dict[str, Any]) -> bool:
    """Recognize the candidate of the protocol layers."""
    return "share" in candidate.get("chosen", {})


def _is_linear(candidate: dict[str, Any]) -> bool:
    return not any(is_kind(candidate) for is_kind, *_ in _KINDS)


_KINDS = (  # with marks of their own
    (_selects_features, "D", _LAYERS, "features of layers"),
    (_is_attentive, "^", _POOLED, "maps pooled by attention"),
)


def _choose_colour(candidate: dict[str, Any]) -> str:
    for is_kind, _, colour, _ in _KINDS:
        if is_kind(candidate):
            return colour
    return _BLOCK if len(candidate["columns"]) == 1 else _GREEDY


def draw_confusion(stem: Path, targets: Targets, scores: np.ndarray) -> Chart | None:
    """Draw ``stem``.png and .svg; None if matplotlib is not installed, or for more than 2,000 classes."""
    try:
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    except ImportError:
        return None
    size = len(targets.classes)
    if size > MATRIX_CLASSES:
        return None
    counts = confusion_matrix(targets, scores)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.6 + 0.42 * size, 4.4, 9.5)) if size <= _NAMED_CLASSES else 8.0
    figure = Figure(figsize=(side + 1.4, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("of the images of a class")
    _name_classes(axes, targets.classes)
    if size <= _COUNTED_CLASSES:
        _write_counts(axes, counts, share)
    axes.set(xlabel="predicted", ylabel="label")
    right = 100 * np.trace(counts) / max(counts.sum(), 1)
    return Chart(
        "Confusion matrix", save_chart(figure, stem), f"Confusion matrix of {size} classes; {right:.1f} % are on its diagonal"
    )


def _name_classes(axes: "Axes", classes: Sequence[str]) -> None:
    if len(classes) > _NAMED_CLASSES:
        axes.set_title(f"{len(classes)} classes, in the order of results.json", fontsize=9)
        return
    names = [short_name(name) for name in classes]
    size = 9 if len(classes) <= _COUNTED_CLASSES else 7
    axes.set_xticks(range(len(names)), names, parse_math=False, fontsize=size, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=size)


def _write_counts(axes: "Axes", counts: np.ndarray, share: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if share[row, column] > 0.4 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=8, color=color)


def short_name(text: str) -> str:
    """Shorten a name, and replace what no font can draw."""
    text = printable(text, "·")
    return text if len(text) <= _NAME_LENGTH else text[: _NAME_LENGTH - 1] + "…"


def save_chart(figure: "Figure", stem: Path) -> bytes:
    """Save PNG and SVG; return the SVG."""
    from densefeat.base import save_picture  # needs matplotlib, which may be missing

    save_picture(figure, stem.with_name(stem.name + ".png"), is_ours=None)  # in the folder of a probe
    return save_picture(figure, stem.with_name(stem.name + ".svg"), is_ours=None)
