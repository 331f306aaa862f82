"""The chart of the protocol ``layers``: which layers serve the labels, and how many features are needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from densefeat.base import Chart
from densefeat.probing.charts import TITLES, save_chart, short_name
from densefeat.probing.column_layers import INPUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LAYER, _INPUT, _KEPT = "#0072b2", "#9a9a9a", "#e69f00"  # told apart without colours, too: the input is the first bar
_MARKERS = "osD^"
_BAR = 0.15  # inches
_PANELS = (5.5, 18.0)  # inches, of all panels together
_CURVE = 4.2
_TICKS = (1, 2, 4, 8, 16)
_MOST_TICKS = 8
_SHOWN = 0.6  # of the range of the metric: the best half is what differs


def draw_layers(stem: Path, results: dict[str, Any]) -> Chart | None:
    """Draw the layers in results.json to ``stem``.png and .svg; None if matplotlib is not installed.

    Left, a panel for each column: the share of each layer in the relevance of all features, with intervals, and below it which
    share of its features is kept. Right: the main metric on the validation rows by the number of features kept.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    by_column: dict[str, list[dict[str, Any]]] = {}
    for layer in results["layers"]["by_layer"]:
        by_column.setdefault(layer["column"], []).append(layer)
    sizes = [max(4, len(layers)) for layers in by_column.values()]
    width = min(max(_PANELS[0], _BAR * sum(sizes)), _PANELS[1])
    figure = Figure(figsize=(width + _CURVE + 0.8, 4.6), layout="constrained")
    bars, curve = figure.subfigures(1, 2, width_ratios=(width + 0.8, _CURVE), squeeze=False)[0]
    grid = bars.subplots(2, len(sizes), sharex="col", sharey="row", width_ratios=sizes, height_ratios=(3, 1), squeeze=False)
    for (upper, lower), (column, layers) in zip(grid.T, by_column.items(), strict=True):
        _draw_relevance(upper, column, layers)
        _draw_kept(lower, layers)
    grid[0, 0].set_ylabel("share of the relevance, %")
    grid[1, 0].set_ylabel("features kept,\n% of the layer")
    grid[0, 0].set_ylim(bottom=0)
    grid[1, 0].set_ylim(0, 100)
    bars.supxlabel("layer of the block (in: the block's input)", fontsize=10)
    _draw_curve(curve.subplots(), results)
    told = results["layers"]
    alt = f"Relevance of {len(told['by_layer'])} layers; {told['kept']:,} of {told['features']:,} features are kept"
    return Chart("By layer", save_chart(figure, stem), alt)


def _draw_relevance(axes: "Axes", column: str, layers: list[dict[str, Any]]) -> None:
    shares = [100 * layer["relevance"] for layer in layers]
    axes.bar(range(len(layers)), shares, color=[_INPUT if layer["layer"] == INPUT else _LAYER for layer in layers], width=0.8)
    for place, layer in enumerate(layers):
        if layer["relevance_interval"]:
            low, high = (100 * end for end in layer["relevance_interval"])
            axes.vlines(place, low, high, color="black", linewidth=1)
    axes.set_title(short_name(column), fontsize=10, parse_math=False)
    axes.set_xlim(-0.7, max(4, len(layers)) - 0.3)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_kept(axes: "Axes", layers: list[dict[str, Any]]) -> None:
    shares = [100 * layer["kept"] / layer["features"] for layer in layers]
    axes.bar(range(len(layers)), shares, color=_KEPT, width=0.8)
    names = ["in" if layer["layer"] == INPUT else layer["layer"].rpartition(" ")[2] for layer in layers]
    step = next((step for step in _TICKS if len(layers) / step <= _MOST_TICKS), len(layers))
    places = [place for place in range(len(layers)) if place % step == 0]
    axes.set_xticks(places, [names[place] for place in places], fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_curve(axes: "Axes", results: dict[str, Any]) -> None:
    """Draw what was tried: a line for each penalty; and, as level lines, the candidates that ``layers`` is compared with."""
    from matplotlib import colormaps
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    main = results["main_metric"]
    candidates = {candidate["name"]: candidate for candidate in results["candidates"]}
    own = candidates[results["best"]]
    penalties = list(dict.fromkeys(setting["penalty"] for setting in own["tried"]))
    for number, penalty in enumerate(penalties):
        points = sorted((entry["features"], entry[main]) for entry in own["tried"] if entry["penalty"] == penalty)
        line: dict[str, Any] = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 4, "linewidth": 1}
        colour = colormaps["viridis"](0.85 * number / max(1, len(penalties) - 1))
        axes.plot(*zip(*points, strict=True), color=colour, label=f"penalty {penalty:g}", **line)
    reached = own["val"][main]
    axes.plot(own["features"], reached, "*", markersize=14, markerfacecolor="none", markeredgecolor="black", label="chosen")
    rivals = {entry["with"]: entry["role"] for entry in reversed(results["layers"]["comparisons"])}
    levels = [reached]
    for dashes, (name, role) in zip((":", "--", "-."), rivals.items(), strict=False):
        levels.append(candidates[name]["val"][main])
        axes.axhline(levels[-1], color="#555555", linestyle=dashes, linewidth=1, label=short_name(f"{role}: {name}"))
    lowest = min(*levels, *(entry[main] for entry in own["tried"]))
    axes.set_ylim(bottom=max(levels) - _SHOWN * (max(levels) - lowest + 1e-9))
    axes.set(xlabel="features kept", ylabel=f"{TITLES[main]}, validation rows", xscale="log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7.5, loc="lower right")
