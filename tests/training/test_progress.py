"""The output of a run that is not on a terminal: lines, from the first rank alone."""

import pytest

from densefeat.training.progress import training_progress


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture) -> None:
    text = "a[bold]b.jpg: install 'densefeat[train]' " + "x" * 200
    for first in (True, False):
        with training_progress(0, 100, first) as progress:
            progress.print(text)
    assert capsys.readouterr().err == text + "\n"
