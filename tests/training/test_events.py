"""TensorBoard's events: read back by TensorBoard; where the disk is full, one error, and no wait."""

from pathlib import Path

import pytest

from densefeat.errors import OutputError
from densefeat.training.events import EventFile
from support.limits import limit_file_size

pytest.importorskip("tensorboard")


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_scalars(tmp_path: Path) -> None:
    first = EventFile(tmp_path, 1)
    for step in (1, 2, 3, 4):
        first.add({"train/loss": 1 / step, "train/lr": 2}, step)
    assert read_scalars(tmp_path) == {"train/loss": [(1, 1), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)],
                                      "train/lr": [(1, 2), (2, 2), (3, 2), (4, 2)]}  # fmt: skip
    EventFile(tmp_path, 3).add({"train/loss": 0.125}, 3)  # the run went back to step 2
    assert read_scalars(tmp_path)["train/loss"] == [(1, 1), (2, 0.5), (3, 0.125)]


@pytest.mark.parametrize("size", [0, 30, 100])
def test_a_full_disk_is_an_error_of_the_file(tmp_path: Path, size: int) -> None:
    with (
        pytest.raises(OutputError, match=r"output '.*events\.out\..*' cannot be written: File too large"),
        limit_file_size(size),
    ):
        events = EventFile(tmp_path, 1)
        for step in range(10):
            events.add({"train/loss": 0.5}, step)
