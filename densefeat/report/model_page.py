"""The page of a model, as HTML that needs no other file, or as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from densefeat.base import Chart, Section, Table, printable, render_page, render_picture
from densefeat.report.card import ModelCard, collect_run_points
from densefeat.report.comparison import draw_comparison
from densefeat.report.published import Point, published_points
from densefeat.report.stages import Stage, sum_stages

_STAGE_NAMES = (
    "stage", "shape", "parameters", "weights, kB", "MACs, 10⁶", "FLOPs, 10⁶", "activations, kB", "receptive field", "stride",
)  # fmt: skip
_FACT_NAMES = ("name", "value")
_POINT_NAMES = ("network", "data", "top-1, %", "parameters", "MACs, 10⁶", "source")
_HOW_COUNTED = (
    "MACs: multiplications with an addition, of convolutions, cross-layer sums and the linear layer; FLOPs: twice that.",
    "Weights with the norms' statistics, as they are kept; activations: what convolutions, cross-layer sums and the"
    " linear layer give, float32.",
    "Receptive field: pixels of the image and its padding that a value can depend on; larger than the image: all of it.",
)
_COMPARED = (
    "Hollow, and “paper” in the table: figures that the papers print, not measured here. Accuracies on different data cannot be"
    " compared."
)


def collect_points(card: ModelCard, runs: Path | None = None) -> list[Point]:
    """Collect the papers' accuracies for networks with the same stem, those of the card, and those of the runs in a folder."""
    own = card.measured + (collect_run_points(runs) if runs is not None else [])
    return published_points(card.stem) + list(dict.fromkeys(own))


def render_html(card: ModelCard, points: Sequence[Point]) -> str:
    chart = Chart(
        "Accuracy against parameters and arithmetic", render_picture(draw_comparison(points), ".svg"), _describe_chart(points)
    )
    stages = Table(_STAGE_NAMES, _format_stages(card.stages), bold_rows=[len(card.stages)])  # the last row is the sum
    sections = [
        Section("Stages", [stages]),
        Section("Card", [Table(_FACT_NAMES, card.facts, is_text=True)]),
        Section(chart.title, [chart]),
        Section("The same in numbers", [Table(_POINT_NAMES, _format_points(points))]),
    ]
    if card.recipe:
        sections.append(Section("Recipe", [Table(_FACT_NAMES, card.recipe, is_text=True)]))
    return render_page(_format_title(card), [*_HOW_COUNTED, _COMPARED], sections)


def render_markdown(card: ModelCard, points: Sequence[Point]) -> str:
    parts = [
        f"# {_escape_cell(_format_title(card))}",
        _format_table(_STAGE_NAMES, _format_stages(card.stages)),
        "\n".join(_HOW_COUNTED),
        "## Card",
        _format_table(_FACT_NAMES, card.facts),
        "## Accuracy against parameters and arithmetic",
        _format_table(_POINT_NAMES, _format_points(points)),
        _COMPARED.replace("Hollow, and “paper” in the table", "“paper”"),
        *(["## Recipe", _format_table(_FACT_NAMES, card.recipe)] if card.recipe else []),
    ]
    return "\n\n".join(parts) + "\n"


def _format_title(card: ModelCard) -> str:
    return f"{card.name}, {card.image_size}×{card.image_size}"


def _describe_chart(points: Sequence[Point]) -> str:
    measured = sum(not point.papers for point in points)
    return f"{len(points) - measured} networks by the papers' figures and {measured} measured here"


def _format_stages(stages: Sequence[Stage]) -> list[list[str]]:
    """Format a row for each stage, and one for their sum."""
    return [
        [
            each.name,
            "×".join(map(str, each.shape)),
            f"{each.parameters:,}",
            f"{each.weight_bytes / 1e3:,.0f}",
            f"{each.macs / 1e6:,.1f}",
            f"{2 * each.macs / 1e6:,.1f}",
            f"{each.activation_bytes / 1e3:,.0f}",
            "" if each.field is None else f"{each.field.size:,}",
            "" if each.field is None else str(each.field.stride),
        ]
        for each in (*stages, sum_stages(stages))
    ]


def _format_points(points: Sequence[Point]) -> list[list[str]]:
    return [
        [
            point.network,
            point.data,
            f"{point.top1:.2f}",
            f"{point.parameters:,}",
            f"{point.macs / 1e6:,.1f}",
            f"paper: {point.where}" if point.papers else f"measured: {point.where}",
        ]
        for point in points
    ]


def _format_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(_escape_cell, line)) + " |" for line in lines)


def _escape_cell(text: str) -> str:
    """Escape text to one line without markup: names of classes and folders may hold anything."""
    text = printable(text, " ")
    for special in "\\`*[]<>|&":
        text = text.replace(special, f"\\{special}")
    return text
