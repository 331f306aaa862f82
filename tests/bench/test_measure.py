"""Rounds, ratios, tables and the JSON file of all benchmarks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from densefeat.bench.measure import (
    Report,
    compare_rounds,
    format_ratio,
    format_table,
    measure_rounds,
    rate_rows,
    time_call,
)


def test_arms_take_turns_in_an_order_that_reverses() -> None:
    calls: list[str] = []

    def call(name: str) -> int:
        calls.append(name)
        return len(calls)

    results = measure_rounds({name: lambda name=name: call(name) for name in "abc"}, rounds=2, warmups=1)
    assert "".join(calls) == "cba" + "abc" + "cba"
    assert results == {"a": [4, 9], "b": [5, 8], "c": [6, 7]}


def test_ratios_are_of_the_same_round() -> None:
    rows = rate_rows({"timm": [2.0, 4.0, 3.0], "ours": [1.0, 1.0, 3.0]}, "timm", count=6)
    assert rows[0] == {"arm": "timm", "seconds": 3.0, "rate": 2.0, "ratio": {"median": 1, "least": 1, "most": 1}}
    assert rows[1] == {"arm": "ours", "seconds": 1.0, "rate": 6.0, "ratio": {"median": 2, "least": 1, "most": 4}}
    assert format_ratio(compare_rounds([1.0, 1.0], [1.5, 2.5])) == "2.00 (1.50–2.50)"


def test_a_call_is_repeated_until_the_time_is_over() -> None:
    calls: list[None] = []
    seconds = time_call(lambda: calls.append(None), least=0.01)
    assert seconds * len(calls) >= 0.01
    time_call(lambda: calls.clear())
    assert not calls


def test_tables() -> None:
    rows = [["arm", "images/s", "ratio"], ["a|b", "1,000.0", "1.00"], ["c", "not installed"]]
    assert format_table(rows).splitlines() == ["arm  images/s  ratio", "a|b   1,000.0   1.00", "c    not installed"]
    assert format_table(rows, markdown=True).splitlines() == [
        "| arm | images/s | ratio |", "| --- | ---: | ---: |", "| a/b | 1,000.0 | 1.00 |", "| c | not installed |  |",
    ]  # fmt: skip


def test_a_report_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("a title", tmp_path / "report.json")
    rows = [{"arm": "x", "rate": 2.0}, {"arm": "y", "rate": None}]
    report.add("rates", rows, "=arm | a second=rate:.1f")
    report.note("share", 0.5, "half of it")
    output = capsys.readouterr().out
    assert output.startswith("a title\n")
    assert output.endswith("\nrates\n   a second\nx       2.0\ny\nhalf of it\n")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["rates"] == [{"arm": "x", "rate": 2.0}, {"arm": "y", "rate": None}]
    assert (content["share"], content["machine"]["threads"] > 0) == (0.5, True)


# In a process of its own: one that has freed much before may hold more without growing.
HOLDS = """
from densefeat.bench.measure import read_peak, reset_peak
reset_peak()
before = read_peak()
held = b"x" * 500_000_000
print(read_peak() - before)
"""


def test_the_peak_grows_with_what_is_held() -> None:
    output = subprocess.run([sys.executable, "-c", HOLDS], check=True, capture_output=True, text=True).stdout
    assert 400e6 < int(output) < 600e6
