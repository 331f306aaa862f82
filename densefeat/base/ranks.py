"""The numbers of this process among several, which torchrun sets in environment variables."""

import os
from dataclasses import dataclass

_LOCAL = (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))


@dataclass(frozen=True)
class Ranks:
    """The numbers of this process.

    ``rank``: its number among the ``world`` processes of a job; ``local``: its number among the ``local_world`` on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Read what torchrun has set; without it this process is the only one."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        local, local_world = (int(os.environ.get(name, default)) for name, default in _LOCAL)
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local, local_world)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone prints messages and closes what all have written."""
        return self.rank == 0
