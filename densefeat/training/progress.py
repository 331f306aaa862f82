"""The output of a run: on a terminal a live line of images/s, loss, accuracy and time left; elsewhere each evaluation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from densefeat.base import RateColumn, printable

_REFRESH_SECONDS = 1.0  # reading loss and accuracy waits for the device


class Progress:
    """The live line and the messages of rank 0; other ranks print nothing."""

    def __init__(self, bar: Bar, task: TaskID, first: bool) -> None:
        self.bar, self.task, self.first = bar, task, first
        self.last_refresh = 0.0

    def advance(self, images: int, epoch: float, sums: torch.Tensor) -> None:
        """Add images. ``sums``: ``(3,)``, loss, hits and images since the last line of metrics."""
        self.bar.advance(self.task, images)
        if self.bar.disable or time.monotonic() - self.last_refresh < _REFRESH_SECONDS:
            return
        self.last_refresh = time.monotonic()
        loss, hits, count = sums.tolist()
        if count:
            self.describe(f"epoch {epoch:.1f}  loss {loss / count:.3f}  top-1 {100 * hits / count:.1f} %")

    def describe(self, text: str) -> None:
        """Show in the live line what the run is doing."""
        self.bar.update(self.task, description=text)

    def print(self, text: str) -> None:
        """Print a line; control characters are escaped."""
        if self.first:
            self.bar.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def training_progress(done: int, total: int, first: bool) -> Iterator[Progress]:
    """Open the progress of a run at ``done`` of ``total`` images. ``first``: whether this is rank 0."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), RateColumn("images"), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not (first and console.is_terminal)) as bar:
        yield Progress(bar, bar.add_task("training", total=total, completed=done), first)


class Clock:
    """Times of a run in seconds: of all its training, since its last checkpoint, and since a lap of steps started."""

    def __init__(self, earlier_seconds: float, step: int) -> None:
        self.start = time.monotonic() - earlier_seconds
        self.last_save = time.monotonic()
        self.start_lap(step)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def seconds_since_save(self) -> float:
        return time.monotonic() - self.last_save

    def record_save(self) -> None:
        self.last_save = time.monotonic()

    def start_lap(self, step: int) -> None:
        self.lap_start, self.lap_step = time.monotonic(), step

    def end_lap(self, step: int) -> float:
        """Return the steps per second of the lap that ends here, and start the next one."""
        rate = (step - self.lap_step) / (time.monotonic() - self.lap_start)
        self.start_lap(step)
        return rate
