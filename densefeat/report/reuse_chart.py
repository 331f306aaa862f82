"""The triangles of feature reuse, a block beside the other."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

from densefeat.report.reuse import Reuse

WIDTH = 13.0  # inches, of all columns together
CELL = (0.085, 0.3)  # inches: least and most
MOST_TICKS = 9
HOW_TO_READ = "row s: source (0: the block's input), column ℓ: layer that reads it; framed: transition, classifier"


def draw_reuse(reuse: Reuse, title: str) -> Figure:
    """A figure with a triangle for each block: source down, reader across, the block's input first.

    Colours are mean |weight|, 0 to 1 on one scale. DenseNet: over the largest of the block, as in the paper's figure, so that
    the cells of a block compare. DelugeNet: over the largest of the column, for a layer of n sources starts at 1/n, and the
    norm after it takes any factor of the whole column away. What leaves a block has a frame. The CSV has the values.
    """
    triangles = [reuse.triangle(number) for number in range(1, reuse.blocks + 1)]
    figure, panels = panels_for(triangles)
    each = "column" if reuse.cross_layer else "block"
    image = draw_weights(panels, reuse, triangles)
    figure.colorbar(
        image, ax=panels, shrink=0.8, pad=0.01, panchor=False, label=f"mean |weight|, over the largest of the {each}"
    )
    figure.suptitle(f"{title}\n{HOW_TO_READ}", parse_math=False, fontsize=11)
    return figure


def draw_weights(panels: Sequence[Axes], reuse: Reuse, triangles: Sequence[np.ndarray]) -> AxesImage:
    for number, (axes, triangle) in enumerate(zip(panels, triangles, strict=True), 1):
        largest = np.nanmax(triangle, axis=0 if reuse.cross_layer else None, keepdims=True)
        image = draw_triangle(axes, triangle / np.where(largest > 0, largest, 1), Normalize(0, 1), "viridis")
        finish_triangle(axes, reuse, number)
    return image


def panels_for(triangles: Sequence[np.ndarray]) -> tuple[Figure, list[Axes]]:
    """A figure with one row of axes, whose cells are squares of one size."""
    width, height = size_of(triangles)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, panel_row(figure, triangles)


def panel_row(figure: Figure | SubFigure, triangles: Sequence[np.ndarray]) -> list[Axes]:
    columns = [triangle.shape[1] for triangle in triangles]
    return list(figure.subplots(1, len(columns), width_ratios=columns, squeeze=False).flat)


def size_of(triangles: Sequence[np.ndarray]) -> tuple[float, float]:
    """Inches of a row of triangles, with what is written around them."""
    columns = [triangle.shape[1] for triangle in triangles]
    cell = float(np.clip(WIDTH / sum(columns), *CELL))
    tallest = max(triangle.shape[0] for triangle in triangles)
    return max(6.5, sum(columns) * cell + 0.6 * len(columns) + 1.2), tallest * cell + 1.4


def draw_triangle(axes: Axes, values: np.ndarray, norm: Normalize, colours: str) -> AxesImage:
    """Cells as squares from the top; where there is no connection the page shows."""
    axes.set_anchor("N")
    return axes.imshow(values, norm=norm, cmap=colours, interpolation="nearest", aspect="equal")


def finish_triangle(axes: Axes, reuse: Reuse, number: int) -> None:
    """Ticks, frame and title; columns are named by the layer that reads."""
    columns = reuse.block(number)
    names = [column.reader.name for column in columns]
    sources = max(len(column.means) for column in columns)
    for place, column in enumerate(columns):
        if column.reader.leaves:
            axes.add_patch(Rectangle((place - 0.5, -0.5), 1, len(column.means), fill=False, edgecolor="#d62728", linewidth=1.6))
    across = ticks(len([name for name in names if name.isdigit()]), int(names[0]) if names[0].isdigit() else 1)
    axes.xaxis.set_major_locator(FixedLocator([place for place, name in enumerate(names) if name in map(str, across)]))
    axes.set_xticklabels([name for name in names if name in set(map(str, across))])
    axes.yaxis.set_major_locator(FixedLocator(ticks(sources, 0)))
    axes.set_xlabel("layer ℓ", fontsize=9)
    if number == 1:
        axes.set_ylabel("source s", fontsize=9)
    axes.set_title(f"block {number}", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)


def ticks(count: int, first: int) -> list[int]:
    """At most about ``MOST_TICKS`` round numbers from ``first`` on, of ``count``."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= MOST_TICKS or step == 100)
    return [number for number in range(first, first + count) if number % step == 0 or number == first]
