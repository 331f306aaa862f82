"""The numbers of this process among several, which torchrun sets in environment variables."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """The numbers of this process.

    ``rank``: its number among the ``world`` processes of a job; ``local``: its number on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Read what torchrun has set; without it this process is the only one."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone prints messages and closes what all have written."""
        return self.rank == 0
