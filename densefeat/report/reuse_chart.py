"""The chart of feature reuse: a triangle for each block, side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

from densefeat.report.reuse import Reuse, ReuseColumn

_WIDTH = 13.0  # inches, of all columns together
_CELL = (0.085, 0.3)  # inches, smallest and largest
_MOST_TICKS = 9
_GUIDE = "row s: source (0: the block's input), column ℓ: layer that reads it; framed: transition, classifier"


def draw_reuse(reuse: Reuse, title: str) -> Figure:
    """Draw a triangle for each block: sources down, readers across, the block's input first.

    Colours are mean |weight| over the largest, on one scale from 0 to 1. For a DenseNet the largest is that of the block, as in
    the paper's figure, so that the cells of a block can be compared; a transition or classifier whose kernel differs from the
    layers' has weights of another size, so its column is scaled by its own largest. For a DelugeNet every column is scaled by
    its own largest, because a layer of n sources starts at 1/n and the norm after it cancels any factor of a whole column.
    Transitions and classifiers are framed. The CSV has the values.
    """
    triangles = [reuse.triangle(number) for number in range(1, reuse.blocks + 1)]
    figure, panels = _make_figure(triangles)
    draw_weights(figure, panels, reuse, triangles)
    figure.suptitle(f"{title}\n{format_guide(reuse)}", parse_math=False, fontsize=11)
    return figure


def format_guide(reuse: Reuse) -> str:
    """Return the lines that say what rows, columns and colours mean."""
    if reuse.cross_layer:
        return f"{_GUIDE}\nweights over the largest of their column"
    apart = [column for column in reuse.columns if _kernel_size(column) != _kernel_size(reuse.block(column.reader.block)[0])]
    names = " and ".join(dict.fromkeys(column.reader.name for column in apart))
    return f"{_GUIDE}\nweights over the largest of their block" + (f"; {names}: of their column" if names else "")


def _kernel_size(column: ReuseColumn) -> tuple[int, ...]:
    """Return the kernel's size; empty if the reader is not a convolution."""
    return tuple(column.reader.weights[0].shape[2:])


def _column_scales(reuse: Reuse, number: int) -> np.ndarray:
    """Return float64 ``(readers,)``, the value by which each column of a block is scaled."""
    columns = reuse.block(number)
    kinds = list(range(len(columns))) if reuse.cross_layer else [_kernel_size(column) for column in columns]
    largest = [max(other.means.max() for other, own in zip(columns, kinds, strict=True) if own == kind) for kind in kinds]
    return np.where(np.array(largest) > 0, largest, 1)


def draw_weights(figure: Figure | SubFigure, panels: Sequence[Axes], reuse: Reuse, triangles: Sequence[np.ndarray]) -> None:
    """Draw the triangles and their colour scale."""
    for number, (axes, triangle) in enumerate(zip(panels, triangles, strict=True), 1):
        image = draw_triangle(axes, triangle / _column_scales(reuse, number), Normalize(0, 1), "viridis")
        finish_triangle(axes, reuse, number)
    add_scale(figure, panels, image, "mean |weight| over the largest")


def add_scale(
    figure: Figure | SubFigure, panels: Sequence[Axes], image: AxesImage, label: str, extend: str = "neither"
) -> None:
    figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01, panchor=False, extend=extend, label=label)


def _make_figure(triangles: Sequence[np.ndarray]) -> tuple[Figure, list[Axes]]:
    """Make a figure with one row of axes, whose cells are squares of one size."""
    width, height = figure_size(triangles)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, add_panels(figure, triangles)


def add_panels(figure: Figure | SubFigure, triangles: Sequence[np.ndarray]) -> list[Axes]:
    columns = [triangle.shape[1] for triangle in triangles]
    return list(figure.subplots(1, len(columns), width_ratios=columns, squeeze=False).flat)


def figure_size(triangles: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the width and height in inches of a row of triangles with the text around them."""
    columns = [triangle.shape[1] for triangle in triangles]
    cell = float(np.clip(_WIDTH / sum(columns), *_CELL))
    tallest = max(triangle.shape[0] for triangle in triangles)
    return max(6.5, sum(columns) * cell + 0.6 * len(columns) + 1.2), tallest * cell + 1.6


def draw_triangle(axes: Axes, values: np.ndarray, norm: Normalize, colours: str) -> AxesImage:
    """Draw cells as squares; where there is no connection, the background shows."""
    axes.set_anchor("N")
    return axes.imshow(values, norm=norm, cmap=colours, interpolation="nearest", aspect="equal")


def finish_triangle(axes: Axes, reuse: Reuse, number: int) -> None:
    """Add ticks, frames and the title; columns are named by the layer that reads."""
    columns = reuse.block(number)
    names = [column.reader.name for column in columns]
    sources = max(len(column.means) for column in columns)
    for place, column in enumerate(columns):
        if column.reader.leaves:
            axes.add_patch(Rectangle((place - 0.5, -0.5), 1, len(column.means), fill=False, edgecolor="#d62728", linewidth=1.6))
    across = _ticks(len([name for name in names if name.isdigit()]), int(names[0]) if names[0].isdigit() else 1)
    axes.xaxis.set_major_locator(FixedLocator([place for place, name in enumerate(names) if name in map(str, across)]))
    axes.set_xticklabels([name for name in names if name in set(map(str, across))])
    axes.yaxis.set_major_locator(FixedLocator(_ticks(sources, 0)))
    axes.set_xlabel("layer ℓ", fontsize=9)
    if number == 1:
        axes.set_ylabel("source s", fontsize=9)
    axes.set_title(f"block {number}", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)


def _ticks(count: int, first: int) -> list[int]:
    """Return about ``_MOST_TICKS`` round numbers at most, out of ``count`` from ``first`` on."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= _MOST_TICKS or step == 100)
    return [number for number in range(first, first + count) if number % step == 0 or number == first]
