"""How all benchmarks measure and report: arms take turns in rounds, ratios are of the same round, tables and a JSON file."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from densefeat.base import check_target, has_kind, save_json
from densefeat.bench.machine import describe_machine, format_machine

_T = TypeVar("_T")
Row = dict[str, Any]
REPORT_KIND = "densefeat benchmark"  # in JSON files


def measure_rounds(arms: Mapping[str, Callable[[], _T]], rounds: int, warmups: int = 0) -> dict[str, list[_T]]:
    """Call each arm once a round, in an order that reverses from round to round; return what each returned, by arm."""
    results: dict[str, list[_T]] = {name: [] for name in arms}
    for i in range(-warmups, rounds):
        for name in list(arms)[:: -1 if i % 2 else 1]:
            result = arms[name]()
            if i >= 0:
                results[name].append(result)
    return results


def time_rounds(arms: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """As :func:`measure_rounds`, for the seconds of each call; one round before does not count."""
    return measure_rounds({name: partial(time_call, work, device) for name, work in arms.items()}, rounds, warmups=1)


def time_call(work: Callable[[], object], device: str = "cpu", least: float = 0.0) -> float:
    """Seconds of one call, the device's work included; ``least``: the mean of as many calls as take so many seconds."""
    wait = partial(torch.cuda.synchronize, device) if device.startswith("cuda") else lambda: None
    wait()
    calls, began = 0, time.perf_counter()
    while not calls or time.perf_counter() - began < least:
        work()
        calls += 1
    wait()
    return (time.perf_counter() - began) / calls


def compare_rounds(own: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """How many times as fast as ``base`` an arm was, by the seconds of the same rounds: median and range."""
    ratios = [theirs / ours for ours, theirs in zip(own, base, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def rate_rows(seconds: Mapping[str, Sequence[float]], baseline: str, count: int = 1) -> list[Row]:
    """A row for each arm: median seconds, ``count`` a second, and the ratio to the arm ``baseline``."""
    return [
        {"arm": name, "seconds": statistics.median(own), "rate": count / statistics.median(own)}
        | {"ratio": compare_rounds(own, seconds[baseline])}
        for name, own in seconds.items()
    ]


def reset_peak() -> None:
    """Set the process's peak memory back to its present size: imports need more for a moment than they keep."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def read_peak(device: str = "cpu") -> int:
    """The most bytes so far: of a GPU's memory, else of the process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved(device)
    with suppress(OSError):  # getrusage may report the peak of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Report:
    """A benchmark's tables: printed as they come, and kept for a JSON file with the machine beside them."""

    def __init__(self, title: str, file: Path | None = None, device: str = "cpu") -> None:
        if file is not None:
            check_target(file, has_kind(REPORT_KIND))
        machine = describe_machine(device)
        self.file, self.content = file, {"title": title, "machine": machine}
        print(f"{title}\n{format_machine(machine)}", flush=True)

    def add(self, name: str, rows: list[Row], columns: str) -> None:
        """Print ``rows`` under a heading, and keep them.

        ``columns``: for each column ``heading=key:format``, separated by ``" | "``; ratios are printed with their range.
        """
        parts = [column.rpartition("=")[::2] for column in columns.split(" | ")]
        cells = [[heading for heading, _ in parts]]
        cells += [[_format_cell(row.get((form := part.partition(":"))[0]), form[2]) for _, part in parts] for row in rows]
        self.note(name, rows, f"\n{name}\n{format_table(cells)}")

    def note(self, name: str, value: Any, text: str) -> None:
        """Print a line of text, and keep the value that it tells."""
        self.content[name] = value
        print(text, flush=True)
        if self.file is not None:
            save_json(self.file, REPORT_KIND, self.content)


def _format_cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    return format_ratio(value) if isinstance(value, dict) else format(value, form)


def format_ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f}–{ratio['most']:.2f})"


def format_table(rows: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Align rows of cells, the first row the headings; the first column to the left, the others to the right.

    A row with fewer cells than there are headings holds a message in its last cell.
    """
    columns = len(rows[0])
    if markdown:
        full = [[cell.replace("|", "/") for cell in row] + [""] * (columns - len(row)) for row in rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in [full[0], ["---", *["---:"] * (columns - 1)], *full[1:]])
    widths = [max(len(row[i]) for row in rows if i == 0 or len(row) == columns) for i in range(columns)]
    text = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)] if len(rest) == columns - 1 else rest
        text.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(text)


def benchmark_options(rounds: int | None = None) -> Callable[[Any], Any]:
    """Give a script's command the options of all benchmarks: ``--rounds`` (with a default) and ``--json``."""
    path = click.Path(dir_okay=False, path_type=Path)
    file = click.option("--json", "file", type=path, help="Also write the numbers to this file.")
    if rounds is None:
        return file
    count = click.option("--rounds", type=click.IntRange(1), default=rounds, show_default=True)
    return lambda command: count(file(command))
