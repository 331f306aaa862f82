"""HTML pages of one file: they load nothing, run no scripts but their own, and show other people's text as text.

Titles, paths, labels and names come from files that other people made. The templates escape all of it and put it in ``<bdi>``,
so that right-to-left names do not reorder the text around them; a content security policy forbids what might slip through.
"""

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FunctionLoader, StrictUndefined

from densefeat.base.files import atomic_file, output_errors
from densefeat.base.ownership import Recognizer, is_page


@dataclass(frozen=True)
class ImageCard:
    """An image with its caption.

    ``picture``: a data URI; None: a grey box. ``x``, ``y``: the place of a tile in its image. ``page``: of a file of several.
    ``starts_row``: the card begins a row of its section.
    """

    kind: ClassVar[str] = "card"
    heading: str
    path: str
    remark: str = ""  # after the heading
    label: str | None = None
    x: int | None = None
    y: int | None = None
    page: int | None = None
    picture: str | None = None
    is_query: bool = False
    starts_row: bool = False

    @property
    def name(self) -> str:
        page = "" if self.page is None else f":p{self.page}"
        return self.path + page + ("" if self.x is None else f":{self.x},{self.y}")


@dataclass(frozen=True)
class Table:
    """A table of text. ``bold_rows``: numbers of rows, from 0. ``is_text``: the cells are sentences rather than numbers."""

    kind: ClassVar[str] = "table"
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold_rows: Collection[int] = ()
    is_text: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawing. ``svg``: the content of an SVG file; ``alt``: what it shows, in words."""

    kind: ClassVar[str] = "chart"
    title: str
    svg: bytes
    alt: str

    @property
    def data_uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A part of a page with a line above it."""

    title: str = ""
    content: Sequence[ImageCard | Table | Chart] = ()
    text: str = ""


def render_page(title: str, notes: Sequence[str], sections: Sequence[Section], side_by_side: bool = False) -> str:
    """Return the page: a title, notes of a line each, then the sections, below each other or as many in a line as fit."""
    values = {"title": title, "notes": notes, "sections": sections, "side_by_side": side_by_side}
    return render_template("densefeat.base/templates/page.html", **values)


def render_template(name: str, **values: Any) -> str:
    """Return a template filled in. ``name``: ``PACKAGE/FILE``, such as ``densefeat.base/templates/page.html``."""
    return _environment().get_template(name).render(values)


def save_page(path: Path, html: str, is_ours: Recognizer | None = is_page) -> None:
    """Write a page, whole or not at all; it replaces only another page of densefeat.

    ``is_ours``: as in :func:`densefeat.base.files.atomic_file`. Raises OutputError where it cannot be written, UsageError where
    something else has its name.
    """
    with atomic_file(path, is_ours) as beside, output_errors(path):
        beside.write_text(html, encoding="utf-8", errors="backslashreplace")  # names may hold bytes that are not UTF-8


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_read_template), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _read_template(name: str) -> str:
    package, _, file = name.partition("/")
    return files(package).joinpath(file).read_text("utf-8")
