"""The chart of the connections' worth: accuracy lost without each, their weights, and accuracy as more are removed."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from densefeat.report.pruning import BROKEN, LOST, RANDOM, WEIGHT, Pruning
from densefeat.report.reuse import Reuse
from densefeat.report.reuse_chart import (
    add_panels,
    add_scale,
    draw_triangle,
    draw_weights,
    figure_size,
    finish_triangle,
    format_guide,
)

_CURVE_HEIGHT = 4.0  # inches
_STYLES = {BROKEN: ("#0072b2", "o"), LOST: ("#56b4e9", "s"), WEIGHT: ("#d55e00", "^"), RANDOM: ("#777777", "x")}
_FULL_COLOUR = 97  # percentile of the cells at which the colour scale ends


def draw_pruning(pruning: Pruning, reuse: Reuse, title: str) -> Figure:
    """Draw for each block the accuracy lost without each connection, below it the weights, below these the curves.

    The accuracy lost has one colour scale for all blocks, symmetric about 0 and cut off at both ends.
    """
    triangles = [reuse.triangle(number) for number in range(1, reuse.blocks + 1)]
    width, height = figure_size(triangles)
    figure = Figure(figsize=(width, 2 * height + _CURVE_HEIGHT + 0.5), layout="constrained")
    lost, weights, curves = figure.subfigures(3, 1, height_ratios=(height, height, _CURVE_HEIGHT), squeeze=False)[:, 0]
    _draw_lost(lost, pruning, reuse)
    draw_weights(weights, add_panels(weights, triangles), reuse, triangles)
    _draw_curves(curves.subplots(), pruning)
    figure.suptitle(f"{title}\n{format_guide(reuse)}", parse_math=False, fontsize=11)
    return figure


def _draw_lost(figure: SubFigure, pruning: Pruning, reuse: Reuse) -> None:
    triangles = _lost_triangles(pruning, reuse)
    every = np.concatenate([triangle[~np.isnan(triangle)] for triangle in triangles])
    most = float(np.percentile(np.abs(every), _FULL_COLOUR)) or float(np.abs(every).max()) or 1.0
    panels = add_panels(figure, triangles)
    for number, (axes, triangle) in enumerate(zip(panels, triangles, strict=True), 1):
        image = draw_triangle(axes, triangle, Normalize(-most, most), "RdBu_r")
        finish_triangle(axes, reuse, number)
        axes.set_facecolor("#e8e8e8")
    label = f"points of top-1 lost, {pruning.chosen_on:,} images"
    add_scale(figure, panels, image, label, "both")


def _lost_triangles(pruning: Pruning, reuse: Reuse) -> list[np.ndarray]:
    """Return for each block float64 ``(sources, readers)``, the points lost; NaN where there is no connection."""
    places = {(column.reader.block, column.reader.name): place for number in range(1, reuse.blocks + 1)
              for place, column in enumerate(reuse.block(number))}  # fmt: skip
    triangles = [np.full_like(reuse.triangle(number), np.nan) for number in range(1, reuse.blocks + 1)]
    for each in pruning.removed:
        triangles[each.block - 1][each.source, places[each.block, each.target]] = each.accuracy_lost
    return triangles


def _draw_curves(axes: Axes, pruning: Pruning) -> None:
    shares = [0, *(100 * share for share in pruning.shares)]
    for name, curve in pruning.curves.items():
        colour, marker = _STYLES[name]
        axes.plot(shares, [pruning.whole[1], *curve], color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)
    axes.axhline(pruning.whole[1], color="#222222", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel=f"connections removed, % of {len(pruning.removed):,}",
        ylabel=f"top-1, %, of {pruning.drawn_on:,} other images",
        title=f"One image is {100 / pruning.drawn_on:.2g} points",
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title="removed together", fontsize=9)
