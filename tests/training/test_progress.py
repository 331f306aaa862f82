"""What a run says off a terminal: lines as they are, from the first rank alone."""

import pytest

from densefeat.training.progress import training_progress


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture) -> None:
    text = "a[bold]b.jpg: install 'densefeat[train]' " + "x" * 200
    for first in (True, False):
        with training_progress(0, 100, first) as progress:
            progress.say(text)
    assert capsys.readouterr().err == text + "\n"
