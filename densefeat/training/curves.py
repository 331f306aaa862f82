"""Loss and accuracy over the run, as a picture."""

from pathlib import Path
from typing import Any


def draw_curves(metrics: list[dict[str, Any]], path: Path) -> bool:
    """A PNG of the lines of metrics.jsonl; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure

        from densefeat.base import save_picture
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, name, title in zip(axes, ("loss", "top1", "lr"), ("loss", "top-1, %", "learning rate"), strict=True):
        for event in ("train", "val"):
            lines = [line for line in metrics if line["event"] == event and name in line]
            if lines:
                axis.plot(
                    [line["epoch"] for line in lines],
                    [line[name] for line in lines],
                    label=event,
                    linewidth=1,
                    marker="." if event == "val" else "",
                )
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    save_picture(figure, path)
    return True
