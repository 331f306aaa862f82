"""A live line on a terminal: images/s, loss, accuracy, time left. Elsewhere, one line for each evaluation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from densefeat.base import RateColumn

_REFRESH_SECONDS = 1.0  # reading loss and accuracy waits for the device


class Progress:
    """Of rank 0; the others' is silent."""

    def __init__(self, bar: Bar, task: TaskID, first: bool) -> None:
        self.bar, self.task, self.first = bar, task, first
        self.shown = 0.0

    def advance(self, images: int, epoch: float, sums: torch.Tensor) -> None:
        """``sums``: loss, hits and images since they were last noted."""
        self.bar.advance(self.task, images)
        if self.bar.disable or time.monotonic() - self.shown < _REFRESH_SECONDS:
            return
        self.shown = time.monotonic()
        loss, hits, count = sums.tolist()
        if count:
            text = f"epoch {epoch:.1f}  loss {loss / count:.3f}  top-1 {100 * hits / count:.1f} %"
            self.bar.update(self.task, description=text)

    def doing(self, text: str) -> None:
        """What goes on beside the steps."""
        self.bar.update(self.task, description=text)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.first:
            self.bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def training_progress(done: int, total: int, first: bool) -> Iterator[Progress]:
    """``done``, ``total``: images of the run."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), RateColumn("images"), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not (first and console.is_terminal)) as bar:
        yield Progress(bar, bar.add_task("training", total=total, completed=done), first)
