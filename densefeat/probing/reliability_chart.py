"""The reliability picture of a probe: how often answers of each probability are right, before and after the temperature."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densefeat.base import Chart
from densefeat.probing.charts import save_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR, _GAP, _LINE = "#1f77b4", "#d95f02", "#444444"


def draw_reliability(stem: Path, certainty: dict[str, Any]) -> Chart | None:
    """Draw ``stem``.png and .svg; None if matplotlib is not installed. ``certainty``: as in results.json, with ``reliability``.

    Left before, right after. Bars: the share that is right; orange, from there to the mean probability: the error. Below: how
    many answers.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=(4, 1), sharex=True, sharey="row")
    errors = {}
    for column, (name, heading) in enumerate((("before", "before"), ("after", f"temperature {certainty['temperature']:.3g}"))):
        errors[name] = certainty["calibration"]["test"][name]["ece"]
        _draw_bins(axes[0, column], axes[1, column], certainty["reliability"][name])
        axes[0, column].set_title(f"{heading}: calibration error {errors[name]:.3f}", fontsize=10)
    axes[0, 0].set_ylabel("share that is right")
    axes[0, 0].legend(fontsize=8, loc="upper left")
    axes[1, 0].set_ylabel("answers")
    words = f"Calibration error on the test rows: {errors['before']:.3f} before, {errors['after']:.3f} after the temperature"
    return Chart("Reliability: probabilities of the test rows", save_chart(figure, stem), words)


def _draw_bins(axes: "Axes", below: "Axes", bins: dict[str, list[float]]) -> None:
    count, probability, frequency = (np.array(bins[name], np.float64) for name in ("count", "probability", "frequency"))
    size = len(count)
    used, centres = count > 0, (np.arange(size) + 0.5) / size
    axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1, linestyle="--", label="as promised", zorder=3)
    axes.bar(centres[used], frequency[used], 0.94 / size, color=_BAR, label="share that is right")
    axes.vlines(centres[used], frequency[used], probability[used], color=_GAP, linewidth=3, label="mean probability", zorder=2)
    axes.scatter(centres[used], probability[used], color=_GAP, s=22, zorder=4)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    below.bar(centres, count, 0.94 / size, color=_LINE)
    below.set_xlabel("probability")
    below.grid(axis="y", alpha=0.3)
