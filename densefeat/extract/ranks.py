"""Which of several processes this is: torchrun tells by environment variables."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch.distributed import rendezvous

from densefeat.errors import UsageError

WAIT = timedelta(days=1)  # for rank 0 to list the input


@dataclass(frozen=True)
class Ranks:
    """``rank`` of ``world`` processes, ``local``: its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> "Ranks":
        """As torchrun sets it; a process on its own where it does not."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))

    def agree(self, value: str | None) -> str:
        """What rank 0 passes here, in every process; the others wait for it. The only message that a job needs.

        A key in torchrun's own store, apart for each restart; no process group, whose restart can hang.
        """
        if self.world == 1:
            return value or ""
        store, _, _ = next(iter(rendezvous("env://", self.rank, self.world, timeout=WAIT)))
        if value is not None:
            store.set("densefeat", value)
        return store.get("densefeat").decode()

    def device(self, device: str) -> str:
        """Each process of a machine its own GPU, unless one was named."""
        if self.world == 1 or device not in ("auto", "cuda") or not torch.cuda.is_available():
            return device
        if self.local >= torch.cuda.device_count():
            raise UsageError(
                f"process {self.local} of this machine has no GPU of its own ({torch.cuda.device_count()} here):"
                " start as many processes as there are GPUs, or give --device cpu"
            )
        return f"cuda:{self.local}"
