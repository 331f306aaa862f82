"""A picture of how a cross-layer head uses each block."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from densefeat.errors import UsageError


def draw_usage(usage: np.ndarray, names: Sequence[str], stem: Path) -> bool:
    """Draw ``stem.png`` and ``stem.svg``. Returns False where matplotlib is not installed.

    Args:
        usage: ``(blocks, width)``, shares in [0, 1] as :meth:`CrossLayerHead.block_usage` gives them.
        names: The blocks' names, in the same order.
        stem: The files' path without its suffix.

    On the left are all channels, grouped by their strongest block, on the right the mean over channels. Raises UsageError
    unless there is one name for each block.
    """
    if usage.ndim != 2 or len(usage) != len(names):
        raise UsageError(f"usage of shape {usage.shape} for {len(names)} names: give (blocks, width), a name for each block")
    try:
        from matplotlib.figure import Figure

        from densefeat.base import save_picture
    except ImportError:
        return False
    blocks, width = usage.shape
    figure = Figure(figsize=(10, 1.6 + 0.4 * blocks), layout="constrained")
    heat, bars = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    image = heat.imshow(usage[:, _sort_by_strongest_block(usage)], aspect="auto", vmin=0, interpolation="nearest")
    heat.set(xlabel=f"{width} channels, by strongest block", title="share of each block in each channel")
    heat.set_yticks(range(blocks), names, parse_math=False)
    figure.colorbar(image, ax=heat, label="share")
    means = bars.barh(range(blocks), usage.mean(1))
    bars.bar_label(means, fmt="{:.0%}", padding=3)
    bars.set(xlabel="mean share", title="mean over channels")
    bars.margins(x=0.35)
    bars.tick_params(labelleft=False)
    for suffix in (".png", ".svg"):
        save_picture(figure, stem.with_name(stem.name + suffix))
    return True


def _sort_by_strongest_block(usage: np.ndarray) -> np.ndarray:
    """Order channels by their strongest block, then by its share, largest first: int64 ``(width,)``."""
    return np.lexsort((-usage.max(0), usage.argmax(0)))
