"""A map as one page of HTML that needs nothing beside it: Bokeh draws, a script of ours has the controls."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, Scatter
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from bokeh.resources import Resources

from densefeat.map.colours import REST, Colouring, Numbers
from densefeat.map.thumbnails import ACROSS, Sheets

_TOOLS = "pan,wheel_zoom,box_zoom,box_select,lasso_select,hover,reset,save"
_SIZES = ((1_000, 9), (5_000, 6))  # of a point, in pixels, up to so many
_SMALLEST = 4
LONGEST = 200  # characters of a label on the page
_START = {"x": [0], "y": [0], "colour": ["#0000"]}  # without any point Bokeh warns that it finds no ranges; fewer come never


@dataclass(frozen=True)
class Fact:
    """What is told of each point under the pointer; None: nothing."""

    name: str
    texts: Sequence[str | None]


@dataclass(frozen=True)
class Content:
    """Of a page with n points. ``names``: n; ``points``: ``(n, 2)`` by block; ``told``: how each block's were made;
    ``labelled``: whether the first of ``facts`` is to be searched, too.
    """

    title: str
    names: Sequence[str]
    points: Mapping[str, np.ndarray]
    told: Mapping[str, str]
    facts: Sequence[Fact]
    colourings: Sequence[Colouring]
    labelled: bool


def page(content: Content, sheets: Sheets, notes: Sequence[str]) -> str:
    """HTML. Its scripts, and no others, may run: their SHA-256 stand in the page's policy."""
    scripts = [*Resources(mode="inline", components=["bokeh", "bokeh-gl"]).js_raw[:2], _own("map.js")]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    # WebGL's layer compiles its commands, hence unsafe-eval
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes} 'unsafe-eval'"
    asked = "File name or label" if content.labelled else "File name"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(content.title)}</title>
<style>{_own("map.css")}</style>
</head>
<body>
<h1><bdi>{escape(content.title)}</bdi></h1>
<div class="controls">
<label>Block <select id="block" autocomplete="off"></select></label>
<label>Colour <select id="colour" autocomplete="off"></select></label>
<input id="search" type="search" autocomplete="off" placeholder="{asked}" aria-label="{asked}">
<output id="count"></output>
<button id="download" type="button" disabled>Download list</button>
<button id="clear" type="button" disabled>Clear</button>
</div>
<p id="told"></p>
<div class="board">
<div id="plot"></div>
<div id="legend"></div>
</div>
<div id="tip" hidden><canvas hidden></canvas><div id="tip-text"></div></div>
<ul>
{"".join(f"<li>{escape(note)}</li>{chr(10)}" for note in notes)}</ul>
{_block_of("data", _described(content, sheets))}
{_block_of("figure", _figure_of(len(content.names)))}
{"".join(f"<script>{script}</script>{chr(10)}" for script in scripts)}</body>
</html>
"""


def _own(name: str) -> str:
    return files("densefeat.report").joinpath(name).read_text("utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _block_of(name: str, value: Any) -> str:
    """JSON in which nothing can be taken for a tag."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _figure_of(points: int) -> Any:
    """Bokeh's document; the page's script gives it the points."""
    plot = figure(
        tools=_TOOLS,
        active_scroll="wheel_zoom",
        output_backend="webgl",
        sizing_mode="stretch_both",
        match_aspect=True,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
    )
    plot.axis.visible = False
    plot.grid.visible = False
    plot.toolbar.logo = None
    plot.hover.tooltips = None
    size = next((size for most, size in _SIZES if points <= most), _SMALLEST)
    drawn = plot.scatter(
        "x", "y", source=ColumnDataSource(_START), size=size, line_color=None, fill_color="colour",
        fill_alpha=0.85, nonselection_fill_color="#9a9a9a", nonselection_fill_alpha=0.2, nonselection_line_color=None,
    )  # fmt: skip
    drawn.selection_glyph = Scatter(size=size, fill_color="colour", fill_alpha=1, line_color="#000000", line_width=1)
    return json_item(plot, ID("plot"))


def _described(content: Content, sheets: Sheets) -> dict[str, Any]:
    """What the script reads."""
    return {
        "names": list(content.names),
        "labelled": content.labelled,
        "blocks": [
            {"name": name, "told": content.told[name], "x": _encoded(points[:, 0], "<f4"), "y": _encoded(points[:, 1], "<f4")}
            for name, points in content.points.items()
        ],
        "facts": [_told_fact(fact) for fact in content.facts],
        "colourings": [_told_colouring(colouring) for colouring in content.colourings],
        "rest": REST,
        "thumbnails": {
            "edge": sheets.edge,
            "across": ACROSS,
            "uris": sheets.uris,
            "squares": _encoded(sheets.squares, "<i4"),
            "sizes": _encoded(sheets.sizes, "u1"),
        },
    }


def _told_fact(fact: Fact) -> dict[str, Any]:
    places: dict[str, int] = {}
    codes = [-1 if text is None else places.setdefault(text, len(places)) for text in fact.texts]
    return {"name": fact.name, "texts": list(map(_bounded, places)), "codes": _encoded(np.array(codes), "<i4")}


def _bounded(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _told_colouring(colouring: Colouring) -> dict[str, Any]:
    if isinstance(colouring, Numbers):
        known = colouring.values[np.isfinite(colouring.values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        told = {"kind": "numbers", "low": low, "high": high, "palette": list(Cividis256)}
        return {"name": colouring.name, "values": _encoded(colouring.values, "<f4"), **told}
    return {
        "name": colouring.name,
        "kind": "classes",
        "entries": [(_bounded(name), colour, rows) for name, colour, rows in colouring.entries],
        "codes": _encoded(colouring.codes, "<i4"),
    }


def _encoded(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode("ascii")
