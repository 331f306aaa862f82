"""A comparison for people: aligned text, or Markdown."""

from collections.abc import Sequence
from typing import Any

from densefeat.bench.machine import BUSY

Told = dict[str, Any]
UNSTEADY = 0.15  # spread of the ceiling's rate that is worth a line


def heading(told: Told) -> str:
    machine = told["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "timm") if name in machine["versions"])
    return f"{told['model']}, batch {told['batch']}, {told['size']}×{told['size']} pixels; {where}; {versions}"


def cells(told: Told) -> list[list[str]]:
    """Rows of the table, the first its heads."""
    heads = ["arm", "images/s", "ratio (range)", "of ceiling", "memory", "first call", "off by"]
    return [heads, *(arm_cells(arm) for arm in told["arms"])]


def arm_cells(arm: Told) -> list[str]:
    if arm["problem"] is not None:
        return [arm["title"], arm["problem"]]
    ratio, off = arm["ratio"], f"{arm['difference']:.0e}" if arm["precision"] == "fp32" else f"cos {arm['cosine']:.4f}"
    return [
        arm["title"], f"{arm['images_per_second']:,.1f}", f"{ratio['median']:.2f} ({ratio['least']:.2f}–{ratio['most']:.2f})",
        " / ".join(f"{value:.0f} %" for value in arm["percent"].values()) or "–", f"{arm['peak_bytes'] / 1e6:,.0f} MB",
        f"{arm['build_seconds'] + arm['first_call_seconds']:.1f} s", off,
    ]  # fmt: skip


def text_table(told: Told) -> str:
    rows = cells(told)
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in (rows if i == 0 else full)) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        right = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)] if row in full else row[1:]
        lines.append("  ".join([row[0].ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)


def markdown_table(told: Told) -> str:
    heads, *rows = cells(told)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    lines += [row + [""] * (len(heads) - len(row)) for row in rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def notes(told: Told) -> list[str]:
    """What a reader of the table has to know: what its columns are, and whether the machine was disturbed."""
    found = [f"ratio: to {told['baseline']}, in the same round; median of {told['rounds']} rounds and range"]
    found.append(f"off by: from the plain network in float64, whose own float32 is off by {told['rounding']:.0e}")
    return [*found, ceiling_note(told), *busy_notes(told)]


def ceiling_note(told: Told) -> str:
    rates = [
        f"{name} {rate['largest'] / 1e12:.2f} T{'B' if name == 'copy' else 'FLOP'}/s" for name, rate in told["ceiling"].items()
    ]
    flops, pooled = (told["flops"][key] / 1e9 for key in ("plain", "pooled first"))
    return (
        f"ceiling: {'; '.join(rates) or 'not measured'}; an image is {flops:.2f} GFLOP,"
        f" {pooled:.2f} for engines that pool before a transition's convolution"
    )


def busy_notes(told: Told) -> list[str]:
    found, share = [], told["busy"]["share"]
    if share is None:
        found.append("whether other processes disturbed this cannot be told on this system")
    elif share > BUSY:
        found.append(f"the machine was busy: others used {share:.0%} of its processors' time; ratios are indicative only")
    unsteady = {name: rate["spread"] for name, rate in told["ceiling"].items() if rate["spread"] > UNSTEADY}
    found += [f"the machine was unsteady: its {name} varied by {spread:.0%}" for name, spread in unsteady.items()]
    return found


def verdict(told: Told) -> list[str]:
    """Which backend is the fastest here, by precision."""
    lines = []
    for precision in ("fp32", "bf16"):
        arms = [arm for arm in told["arms"] if arm["problem"] is None and arm["precision"] == precision]
        ours, others = ([arm for arm in arms if arm["ours"] == own] for own in (True, False))
        if ours:
            best = max(ours, key=speed)
            line = f"fastest backend here in {precision}: {best['name']}, {speed(best):,.1f} images/s"
            lines.append(line + (beside(best, max(others, key=speed)) if others else ""))
    return lines


def speed(arm: Told) -> float:
    return arm["images_per_second"]


def beside(best: Told, other: Told) -> str:
    return f", {speed(best) / speed(other):.2f} times the fastest other ({other['title']})"


def overview(comparisons: Sequence[Told]) -> str:
    """Markdown: a row an arm, a column a comparison, images per second with the ratio to its baseline."""
    columns = [{(arm["name"], arm["precision"]): arm for arm in told["arms"]} for told in comparisons]
    heads = [f"{told['model'].removeprefix('densefeat_')}, {told['batch']}" for told in comparisons]
    lines = [["arm", *heads], ["---", *["---:"] * len(heads)]]
    for name, precision in dict.fromkeys(key for column in columns for key in column):
        lines.append([f"{name}, {precision}", *(brief(column.get((name, precision))) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def brief(arm: Told | None) -> str:
    if arm is None or arm["problem"] is not None:
        return "–"
    return f"{speed(arm):,.1f} ({arm['ratio']['median']:.2f})"
