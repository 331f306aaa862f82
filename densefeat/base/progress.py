"""A progress bar with rate and time left, shown only on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class RateColumn(ProgressColumn):
    """A column with images or tiles per second, over rich's window of recent steps."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {self.unit}/s" if speed else f"… {self.unit}/s")


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str = "images", show: bool = True
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of steps since the last call. ``total`` None: not known."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)
