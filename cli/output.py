"""The output of commands: tables, lines, notes, data for other programs, and progress bars of long work.

Commands print through this file alone: what they show contains names from files, and these may hold commands to a terminal.
"""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from densefeat import base, store
from densefeat.base import printable, shorten_text

if TYPE_CHECKING:
    from rich.console import Console

    from densefeat.evaluation import Results
    from densefeat.extraction import ExtractResult

_MAX_PROBLEMS = 3  # of a kind, with a line each
_MAX_NOTE = 2000  # characters: a name from a file may have millions
_PATIENCE = 2.0  # seconds without a progress bar


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    whole: Collection[str] = (),
    bold: Collection[int] = (),
) -> None:
    """Print a table on stdout. On a terminal long cells are folded; elsewhere no line is.

    Control characters are escaped, and markup is text like any other.

    Args:
        right: Headings of the columns that are aligned to the right.
        whole: Headings of the columns that are never folded.
        bold: Numbers of the rows in bold.
    """
    from rich.table import Table  # 0.1 s that --help need not take
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        justify = "right" if heading in right else "left"
        table.add_column(Text(printable(heading)), justify=justify, overflow="fold", no_wrap=heading in whole)
    for number, row in enumerate(rows):
        table.add_row(*(Text(printable(cell), "bold" if number in bold else "") for cell in row))
    _wide_console().print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names in bold and their values beside them."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(printable(name)), Text(printable(value)))
    _wide_console().print(table)


def fits_terminal(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether :func:`print_table` would print these rows without folding a cell."""
    widths = (max(map(len, column)) for column in zip(headings, *rows, strict=True))
    return sum(widths) + 2 * len(headings) <= _wide_console().width


def _wide_console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1_000_000  # a table is as wide as its longest cells
    return console


def format_bytes(count: float) -> str:
    """Return a size as people read it."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            break
    return f"{count:,.1f} {unit}"


def print_line(text: str = "", *, err: bool = False) -> None:
    """Print a line on stdout or, with ``err``, on stderr; control characters are escaped."""
    click.echo(printable(text), err=err)


def print_note(text: str) -> None:
    """Print a line on stderr, where it does not disturb what another program reads from stdout; a very long one is cut off."""
    print_line("densefeat: " + shorten_text(text, _MAX_NOTE), err=True)


def check_rows(result: "Results | ExtractResult") -> None:
    """Raise ClickException where no image could be read."""
    if not result.rows:
        raise click.ClickException(f"none of {result.failures} images could be read: see {result.failures_path}")


def print_problems(result: "Results") -> None:
    """Print on stderr the first images that could not be read, and pictures that could not be drawn; see :func:`check_rows`."""
    check_rows(result)
    print_unread(result.store)
    for name, reason in list(result.not_drawn.items())[:_MAX_PROBLEMS]:
        print_line(f"not drawn: {name}: {reason}", err=True)


def print_unread(path: Path) -> None:
    """Print the first images that a store has failures of, on stderr."""
    for failure in store.open_store(path).failures[:_MAX_PROBLEMS]:
        print_line(f"not read: {failure.path}: {failure.reason}", err=True)


def format_failures(result: "Results") -> str:
    """Return what follows the number of rows: how many images could not be read, and where the reasons are."""
    return f", {result.failures} failures ({result.failures_path})" if result.failures else ""


class DataOutput:
    """Stdout for CSV, JSON and the like: another program gets them as they are, a terminal with control characters escaped."""

    def write(self, text: str) -> None:
        sys.stdout.write("\n".join(map(printable, text.split("\n"))) if sys.stdout.isatty() else text)


@contextmanager
def late_progress_bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number done since the last call; the bar appears after two seconds."""
    started, done = time.monotonic(), 0
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def report(more: int) -> None:
            nonlocal advance, done
            done += more
            if advance is not None:
                advance(more)
            elif time.monotonic() - started > _PATIENCE:
                advance = stack.enter_context(base.progress_bar(description, total, unit))
                advance(done)

        yield report


@contextmanager
def status_line() -> Iterator[Callable[[str], object]]:
    """Yield a function that shows what is being done: on stderr if that is a terminal, else nowhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("starting") as status:
        yield status.update
