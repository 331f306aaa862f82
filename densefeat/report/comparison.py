"""The chart of accuracy against parameters and arithmetic, as in Figure 4 of the DenseNet paper, measured and published."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from densefeat.report.published import Point

_PAPERS, _MEASURED = "#0072b2", "#d55e00"
_ROW_HEIGHT = 3.6  # inches
_SIDES = (  # the places beside a point where its name can go
    (0, 1, "center", "bottom"), (0, -1, "center", "top"), (-1, 0, "right", "center"), (1, 0, "left", "center"),
    (-1, 1, "right", "bottom"), (1, -1, "left", "top"), (-1, -1, "right", "top"), (1, 1, "left", "bottom"),
)  # fmt: skip


def draw_comparison(points: Sequence[Point]) -> Figure:
    """Draw a row for each data set: top-1 against parameters on the left, against MACs on the right.

    Hollow points are a paper's figures, filled ones were measured with densefeat. Rows are not comparable.
    """
    data = list(dict.fromkeys(point.data for point in points))
    figure = Figure(figsize=(11, 0.4 + _ROW_HEIGHT * len(data)), layout="constrained")
    rows = figure.subplots(len(data), 2, squeeze=False, sharey="row")
    for axes, name in zip(rows, data, strict=True):
        row = [point for point in points if point.data == name]
        _draw_points(axes[0], row, [point.parameters / 1e6 for point in row], "parameters, millions")
        _draw_points(axes[1], row, [point.macs / 1e9 for point in row], "multiply-adds an image, 10⁹")
        axes[0].set_ylabel("top-1, %")
        for each in axes:
            each.set_title(name, fontsize=10, parse_math=False)
    return figure


def _draw_points(axes: Axes, points: Sequence[Point], costs: Sequence[float], title: str) -> None:
    for papers, colour, label in ((True, _PAPERS, "the paper's figure"), (False, _MEASURED, "measured with densefeat")):
        chosen = [(cost, point.top1) for cost, point in zip(costs, points, strict=True) if point.papers == papers]
        if chosen:
            fill = "none" if papers else colour
            axes.plot(*zip(*chosen, strict=True), "o", color=colour, markerfacecolor=fill, markersize=6, label=label)
    axes.set_xscale("log")
    axes.set_xlim(0.5 * min(costs), 2 * max(costs))
    axes.margins(y=0.25)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    _write_names(axes, points, costs)


def _write_names(axes: Axes, points: Sequence[Point], costs: Sequence[float]) -> None:
    """Write each point's name beside it, where no other name or point is, estimating the size of the text."""
    (left, right), (bottom, top) = np.log(axes.get_xlim()), axes.get_ylim()
    places = [((np.log(cost) - left) / (right - left), (point.top1 - bottom) / (top - bottom))
              for cost, point in zip(costs, points, strict=True)]  # fmt: skip
    taken = [(x - 0.01, y - 0.025, x + 0.01, y + 0.025) for x, y in places]
    for (x, y), point in zip(places, points, strict=True):
        text = _shorten_name(point.network)
        boxes = [_text_box(x, y, text, *side[:2]) for side in _SIDES]
        free = [all(_are_apart(box, other) for other in taken) for box in boxes]
        chosen = free.index(True) if any(free) else 0
        taken.append(boxes[chosen])
        across, up, horizontal, vertical = _SIDES[chosen]
        axes.annotate(
            text, (x, y), xycoords="axes fraction", xytext=(7 * across, 7 * up), textcoords="offset points",
            fontsize=7, ha=horizontal, va=vertical, parse_math=False,
        )  # fmt: skip


def _text_box(x: float, y: float, text: str, across: int, up: int) -> tuple[float, float, float, float]:
    """Return left, bottom, right and top of a text beside a point."""
    width, height = 0.0135 * len(text), 0.05
    left = x + (0.018 if across > 0 else -0.018 - width if across < 0 else -width / 2)
    bottom = y + (0.03 if up > 0 else -0.03 - height if up < 0 else -height / 2)
    return left, bottom, left + width, bottom + height


def _are_apart(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def _shorten_name(network: str) -> str:
    return network.removeprefix("densefeat_").replace("densenet", "D").replace("delugenet", "Deluge").replace("_", "-")
