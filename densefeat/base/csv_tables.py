"""CSV tables for people, who may open them in a spreadsheet program: that would run a cell that begins like a formula.

Such cells are written as they are, and counted in a warning. An apostrophe before them, or a tab, would be a part of the key
for every other reader, and the key would fit no image any more.
"""

import csv
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

_log = logging.getLogger(__name__)
# where a program separates cells by semicolons or tabs, as in many countries, the text behind one is a cell of its own
_FORMULA = re.compile("(?:^|[;\t\r\n])[=+\\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?\.?\d[\d.,]*(?:[eE][+-]?\d+)?", re.ASCII)


class _Output(Protocol):
    def write(self, text: str, /) -> object: ...


class _Lines:
    """An output of lines that end as Python's text does, while :mod:`csv` quotes whatever has a part of its longer line end."""

    END = "\r\n"

    def __init__(self, output: _Output) -> None:
        self.output = output

    def write(self, line: str) -> None:
        self.output.write(line.removesuffix(self.END) + "\n")


class FormulaCheck:
    """A look at the cells of a table, which ``title`` names, for text that a spreadsheet program takes for a formula."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.count = 0
        self.first = ""

    def add(self, cells: Iterable[object]) -> None:
        """Look at some cells; only text can be a formula."""
        for cell in cells:
            if isinstance(cell, str) and _FORMULA.search(cell) and not _NUMBER.fullmatch(cell):
                self.first = self.first or cell
                self.count += 1

    def warn(self) -> None:
        """Log a warning if there were any."""
        if self.count:
            _log.warning(
                "%s: a spreadsheet program would take %s of its cells for formulas, the first %r: import its columns as text",
                self.title, f"{self.count:,}", self.first,
            )  # fmt: skip


def write_csv(output: _Output, header: Sequence[str], rows: Iterable[Sequence[Any]], title: str) -> None:
    """Write a header and rows as CSV; log a warning of cells that look like formulas. ``title``: the table's name in it."""
    writer, check = csv.writer(_Lines(output), lineterminator=_Lines.END), FormulaCheck(title)
    writer.writerow(header)
    for row in rows:
        check.add(row)
        writer.writerow(row)
    check.warn()
