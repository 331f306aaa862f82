"""A map as one HTML page that needs no other file: Bokeh draws the points, ``templates/map.js`` runs the controls."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, Scatter
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from bokeh.resources import Resources

from densefeat.base import render_template
from densefeat.map.colours import REST, Colouring, NumberColouring
from densefeat.map.thumbnails import ACROSS, Sheets

_TOOLS = "pan,wheel_zoom,box_zoom,box_select,lasso_select,hover,reset,save"
_POINT_SIZES = ((1_000, 9), (5_000, 6))  # largest number of points, and their size in pixels
_SMALLEST_SIZE = 4
LONGEST_LABEL = 200  # characters of a label on the page
_START = {"x": [0], "y": [0], "colour": ["#0000"]}  # without a point, Bokeh warns that it finds no ranges


@dataclass(frozen=True)
class PointFact:
    """A line that the page shows under the pointer: its name, and the text of each point, or None."""

    name: str
    texts: Sequence[str | None]


@dataclass(frozen=True)
class MapContent:
    """The content of a page with n points.

    Attributes:
        names: The n file names.
        points: ``(n, 2)`` for each block.
        projections: How each block's points were made, in words.
        labelled: Whether the search covers the first of ``facts``, too.
    """

    title: str
    names: Sequence[str]
    points: Mapping[str, np.ndarray]
    projections: Mapping[str, str]
    facts: Sequence[PointFact]
    colourings: Sequence[Colouring]
    labelled: bool


def render_map(content: MapContent, sheets: Sheets, notes: Sequence[str]) -> str:
    """Return the HTML. Only its own scripts can run: the page's policy lists their SHA-256."""
    scripts = [*Resources(mode="inline", components=["bokeh", "bokeh-gl"]).js_raw[:2], _read_asset("map.js")]
    return render_template(
        "densefeat.map/templates/map.html",
        title=content.title,
        search_hint="File name or label" if content.labelled else "File name",
        notes=notes,
        data={
            "data": _embed_json(_page_data(content, sheets)),
            "figure": _embed_json(_make_figure(len(content.names))),
        },
        scripts=scripts,
        hashes=[_hash_script(script) for script in scripts],
    )


def _read_asset(name: str) -> str:
    return files("densefeat.map").joinpath("templates", name).read_text("utf-8")


def _hash_script(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _embed_json(value: Any) -> str:
    """Return JSON in which nothing can be read as a tag."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _make_figure(points: int) -> Any:
    """Return Bokeh's document; the page's script sets the points."""
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
    size = next((size for most, size in _POINT_SIZES if points <= most), _SMALLEST_SIZE)
    drawn = plot.scatter(
        "x", "y", source=ColumnDataSource(_START), size=size, line_color=None, fill_color="colour",
        fill_alpha=0.85, nonselection_fill_color="#9a9a9a", nonselection_fill_alpha=0.2, nonselection_line_color=None,
    )  # fmt: skip
    drawn.selection_glyph = Scatter(size=size, fill_color="colour", fill_alpha=1, line_color="#000000", line_width=1)
    return json_item(plot, ID("plot"))


def _page_data(content: MapContent, sheets: Sheets) -> dict[str, Any]:
    """Return what the page's script reads."""
    return {
        "names": list(content.names),
        "labelled": content.labelled,
        "blocks": [
            {
                "name": name,
                "projection": content.projections[name],
                "x": _encode_array(points[:, 0], "<f4"),
                "y": _encode_array(points[:, 1], "<f4"),
            }
            for name, points in content.points.items()
        ],
        "facts": [_fact_data(fact) for fact in content.facts],
        "colourings": [_colouring_data(colouring) for colouring in content.colourings],
        "rest": REST,
        "thumbnails": {
            "edge": sheets.edge,
            "across": ACROSS,
            "uris": sheets.uris,
            "squares": _encode_array(sheets.squares, "<i4"),
            "sizes": _encode_array(sheets.sizes, "u1"),
        },
    }


def _fact_data(fact: PointFact) -> dict[str, Any]:
    places: dict[str, int] = {}
    codes = [-1 if text is None else places.setdefault(text, len(places)) for text in fact.texts]
    return {"name": fact.name, "texts": list(map(_shorten, places)), "codes": _encode_array(np.array(codes), "<i4")}


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def _colouring_data(colouring: Colouring) -> dict[str, Any]:
    if isinstance(colouring, NumberColouring):
        known = colouring.values[np.isfinite(colouring.values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        scale = {"kind": "numbers", "low": low, "high": high, "palette": list(Cividis256)}
        return {"name": colouring.name, "values": _encode_array(colouring.values, "<f4"), **scale}
    return {
        "name": colouring.name,
        "kind": "classes",
        "entries": [(_shorten(name), colour, rows) for name, colour, rows in colouring.entries],
        "codes": _encode_array(colouring.codes, "<i4"),
    }


def _encode_array(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode("ascii")
