"""A process alone, and devices that are not there."""

import pytest
import torch

from densefeat import UsageError
from densefeat.training.world import join_world, own_device


def test_alone() -> None:
    with join_world("cpu") as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
        values = torch.arange(3.0)
        total = world.total(values)
        total += 1
        assert values.tolist() == [0, 1, 2]  # what was given stays as it is
        assert world.largest([1.0, 2.0]) == [1.0, 2.0]
        assert world.tell("a") == "a"
        assert len(world.gather(values)) == 1


@pytest.mark.parametrize(
    ("device", "message"),
    [("tpu!", "device 'tpu!': no such kind"), ("cuda:99", r"device 'cuda:99': there are \d+ GPUs here, and this is process 1")],
)
def test_devices_that_are_not_there(device: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        own_device(device, 1)
