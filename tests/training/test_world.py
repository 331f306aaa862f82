"""A process alone."""

import torch

from densefeat.training.world import join_world


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
