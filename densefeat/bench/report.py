"""A comparison for people: a table, notes on how to read it, and which backend is the fastest."""

from collections.abc import Sequence
from typing import Any

from densefeat.bench.machine import format_machine
from densefeat.bench.measure import format_ratio, format_table

_BUSY = 0.10  # the share of the machine's time that others may use without a note
_UNSTEADY = 0.15  # the spread of the ceiling's rate that is worth a note
_HEADS = ("arm", "images/s", "ratio (range)", "of ceiling", "memory", "first call", "off by")

Comparison = dict[str, Any]  # as densefeat.bench.comparison.compare returns it


def format_comparison(comparison: Comparison, markdown: bool = False) -> str:
    """Everything that a reader of a comparison needs, as text or Markdown."""
    heading = (
        f"{comparison['model']}, batch {comparison['batch']}, {comparison['size']}×{comparison['size']} pixels;"
        f" {format_machine(comparison['machine'])}"
    )
    table = format_table([_HEADS, *(_arm_cells(arm) for arm in comparison["arms"])], markdown)
    if markdown:
        lines = [f"- {line}" for line in [*_notes(comparison), *_verdicts(comparison)]]
        return "\n".join([f"### {heading}", "", table, "", *lines])
    return "\n".join([heading, "", table, "", *_notes(comparison), "", *_verdicts(comparison)]).rstrip()


def _arm_cells(arm: dict[str, Any]) -> list[str]:
    if arm["problem"] is not None:
        return [arm["title"], arm["problem"]]
    off = f"{arm['difference']:.0e}" if arm["precision"] == "fp32" else f"cos {arm['cosine']:.4f}"
    return [
        arm["title"], f"{arm['images_per_second']:,.1f}", format_ratio(arm["ratio"]),
        " / ".join(f"{value:.0f} %" for value in arm["percent"].values()) or "–", f"{arm['peak_bytes'] / 1e6:,.0f} MB",
        f"{arm['build_seconds'] + arm['first_call_seconds']:.1f} s", off,
    ]  # fmt: skip


def _notes(comparison: Comparison) -> list[str]:
    """What the columns are, and whether the machine was disturbed."""
    units = {"copy": "TB/s"}
    rates = [
        f"{name} {rate['largest'] / 1e12:.2f} {units.get(name, 'TFLOP/s')}" for name, rate in comparison["ceiling"].items()
    ]
    flops, pooled = (comparison["flops"][key] / 1e9 for key in ("plain", "pooled first"))
    return [
        *(f"ratio in {precision}: to {title}, in the same round; median of {comparison['rounds']} rounds and range"
          for precision, title in comparison["baselines"].items()),
        f"off by: from the plain network in float64, whose own float32 is off by {comparison['rounding']:.0e}",
        f"ceiling: {'; '.join(rates) or 'not measured'}; an image is {flops:.2f} GFLOP,"
        f" {pooled:.2f} for engines that pool before a transition's convolution",
        *_disturbances(comparison),
    ]  # fmt: skip


def _disturbances(comparison: Comparison) -> list[str]:
    lines, share = [], comparison["busy"]["share"]
    if share is None:
        lines.append("this system does not tell whether other processes disturbed the measurement")
    elif share > _BUSY:
        lines.append(f"the machine was busy: others used {share:.0%} of its processors' time; ratios are indicative only")
    unsteady = {name: rate["spread"] for name, rate in comparison["ceiling"].items() if rate["spread"] > _UNSTEADY}
    return lines + [f"the machine was unsteady: its {name} varied by {spread:.0%}" for name, spread in unsteady.items()]


def _verdicts(comparison: Comparison) -> list[str]:
    """Which backend is the fastest here, by precision."""
    lines = []
    for precision in ("fp32", "bf16"):
        arms = [arm for arm in comparison["arms"] if arm["problem"] is None and arm["precision"] == precision]
        best, other = (max((arm for arm in arms if arm["ours"] == own), key=_rate, default=None) for own in (True, False))
        if best:
            line = f"fastest backend here in {precision}: {best['name']}, {_rate(best):,.1f} images/s"
            ratio = f", {_rate(best) / _rate(other):.2f} times the fastest other ({other['title']})" if other else ""
            lines.append(line + ratio)
    return lines + _compare_precisions(comparison)


def _compare_precisions(comparison: Comparison) -> list[str]:
    """Say in a line which precision pays here: the fastest backends in both, where both were measured."""
    measured = [arm for arm in comparison["arms"] if arm["problem"] is None and arm["ours"]]
    full, half = (
        max((arm for arm in measured if arm["precision"] == precision), key=_rate, default=None)
        for precision in ("fp32", "bf16")
    )
    if full is None or half is None:
        return []
    winner, loser = (half, full) if _rate(half) > _rate(full) else (full, half)
    line = (
        f"precision that pays here: {winner['precision']} ({winner['name']}),"
        f" {_rate(winner) / _rate(loser):.2f} times as fast as {loser['precision']} ({loser['name']})"
    )
    emulated = comparison["device"] == "cpu" and not comparison["machine"]["bf16"]
    return [line + ("; this processor emulates bf16, so that extractors and runs compute in fp32" if emulated else "")]


def _rate(arm: dict[str, Any]) -> float:
    return arm["images_per_second"]


def format_overview(comparisons: Sequence[Comparison]) -> str:
    """Markdown: a row for each arm, a column for each comparison; images per second, with the ratio within the precision."""
    columns = [{(arm["name"], arm["precision"]): arm for arm in comparison["arms"]} for comparison in comparisons]
    heads = [f"{comparison['model'].removeprefix('densefeat_')}, {comparison['batch']}" for comparison in comparisons]
    rows = [["arm", *heads]]
    for name, precision in dict.fromkeys(key for column in columns for key in column):
        rows.append([f"{name}, {precision}", *(_brief(column.get((name, precision))) for column in columns)])
    return format_table(rows, markdown=True)


def _brief(arm: dict[str, Any] | None) -> str:
    if arm is None or arm["problem"] is not None:
        return "–"
    return f"{_rate(arm):,.1f} ({arm['ratio']['median']:.2f})"
