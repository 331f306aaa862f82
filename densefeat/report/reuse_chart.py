"""The triangles of feature reuse, a block beside the other."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

from densefeat.report.reuse import Column, Reuse

_WIDTH = 13.0  # inches, of all columns together
_CELL = (0.085, 0.3)  # inches: least and most
_MOST_TICKS = 9
_HOW_TO_READ = "row s: source (0: the block's input), column ℓ: layer that reads it; framed: transition, classifier"


def draw_reuse(reuse: Reuse, title: str) -> Figure:
    """A figure with a triangle for each block: source down, reader across, the block's input first.

    Colours are mean |weight|, 0 to 1 on one scale. DenseNet: over the largest of the block, as in the paper's figure, so that
    the cells of a block compare; what leaves a block by another kernel than its layers', as the classifier, which is no
    convolution, has weights of another size, and is over its own largest. DelugeNet: over the largest of the column, for a
    layer of n sources starts at 1/n, and the norm after it takes any factor of the whole column away. What leaves a block has
    a frame. The CSV has the values.
    """
    triangles = [reuse.triangle(number) for number in range(1, reuse.blocks + 1)]
    figure, panels = _panels_for(triangles)
    draw_weights(figure, panels, reuse, triangles)
    figure.suptitle(f"{title}\n{how_to_read(reuse)}", parse_math=False, fontsize=11)
    return figure


def how_to_read(reuse: Reuse) -> str:
    """Rows, columns, and what the colours are over."""
    if reuse.cross_layer:
        return f"{_HOW_TO_READ}\nweights over the largest of their column"
    apart = [column for column in reuse.columns if _kernel_of(column) != _kernel_of(reuse.block(column.reader.block)[0])]
    names = " and ".join(dict.fromkeys(column.reader.name for column in apart))
    return f"{_HOW_TO_READ}\nweights over the largest of their block" + (f"; {names}: of their column" if names else "")


def _kernel_of(column: Column) -> tuple[int, ...]:
    """Empty of what is no convolution."""
    return tuple(column.reader.weights[0].shape[2:])


def _largest_of(reuse: Reuse, number: int) -> np.ndarray:
    """float64 ``(readers,)`` of a block: what each column's colours are over."""
    columns = reuse.block(number)
    kinds = list(range(len(columns))) if reuse.cross_layer else [_kernel_of(column) for column in columns]
    largest = [max(other.means.max() for other, own in zip(columns, kinds, strict=True) if own == kind) for kind in kinds]
    return np.where(np.array(largest) > 0, largest, 1)


def draw_weights(figure: Figure | SubFigure, panels: Sequence[Axes], reuse: Reuse, triangles: Sequence[np.ndarray]) -> None:
    """The triangles, and what their colours mean."""
    for number, (axes, triangle) in enumerate(zip(panels, triangles, strict=True), 1):
        image = draw_triangle(axes, triangle / _largest_of(reuse, number), Normalize(0, 1), "viridis")
        finish_triangle(axes, reuse, number)
    add_scale(figure, panels, image, "mean |weight| over the largest")


def add_scale(
    figure: Figure | SubFigure, panels: Sequence[Axes], image: AxesImage, label: str, extend: str = "neither"
) -> None:
    figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01, panchor=False, extend=extend, label=label)


def _panels_for(triangles: Sequence[np.ndarray]) -> tuple[Figure, list[Axes]]:
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
    cell = float(np.clip(_WIDTH / sum(columns), *_CELL))
    tallest = max(triangle.shape[0] for triangle in triangles)
    return max(6.5, sum(columns) * cell + 0.6 * len(columns) + 1.2), tallest * cell + 1.6


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
    """At most about ``MOST_TICKS`` round numbers from ``first`` on, of ``count``."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= _MOST_TICKS or step == 100)
    return [number for number in range(first, first + count) if number % step == 0 or number == first]
