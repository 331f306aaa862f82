"""A process alone."""

import torch

from densefeat.training.world import join_world


def test_alone() -> None:
    with join_world("cpu") as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
        values = torch.arange(3.0)
        total = world.sum(values)
        total += 1
        assert values.tolist() == [0, 1, 2]  # the argument is left unchanged
        assert world.max([1.0, 2.0]) == [1.0, 2.0]
        assert world.broadcast("a") == "a"
        assert len(world.gather_tensors(values)) == 1
