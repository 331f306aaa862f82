"""CSV tables: what a spreadsheet program would run is counted, never changed."""

import csv
import io
import logging

import pytest

from densefeat.base.csv_tables import write_csv

FORMULAS = [
    "=1+1.jpg",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "a;=1+1.jpg",
    "a\t@b",
    "＝1+1",
    "-a.jpg",
]
HARMLESS = ["", "a.jpg", "a=b+c-d@e.jpg", "-1.5", "+3", "-1e-05", "-.5", "1,000", "a; b", "'=1", -1.5, 7, None]


@pytest.mark.parametrize("cell", FORMULAS + HARMLESS, ids=ascii)
def test_formulas_are_told_and_stay_as_they_are(cell: object, caplog: pytest.LogCaptureFixture) -> None:
    output = io.StringIO()
    with caplog.at_level(logging.WARNING):
        write_csv(output, ["path", "label"], [["b.jpg", cell], [cell, "cat"]], "'p.csv'")
    text = "" if cell is None else str(cell)
    assert list(csv.reader(io.StringIO(output.getvalue(), newline=""))) == [["path", "label"], ["b.jpg", text], [text, "cat"]]
    expected = f"'p.csv': a spreadsheet program would take 2 of its cells for formulas, the first {cell!r}"
    assert [expected in message for message in caplog.messages] == [True] * (cell in FORMULAS)
