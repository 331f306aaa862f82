"""Which of several processes this is: torchrun tells by environment variables."""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch.distributed import Store, rendezvous

from densefeat.errors import UsageError

_WAIT = timedelta(days=1)  # for rank 0 to list the input
_POLL_SECONDS = 0.2


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

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Rank 0 enters when the folder is prepared, the others only after it has; rank 0 leaves last.

        No process group, whose restart can hang: each of the others asks in torchrun's store with a ticket of its own. What the
        store still holds from before a restart is then without effect.
        """
        if self.world == 1:
            yield
            return
        store, _, _ = next(iter(rendezvous("env://", self.rank, self.world, timeout=_WAIT)))
        if self.rank:
            ticket = uuid.uuid4().hex
            store.set(f"densefeat/ask/{self.rank}", ticket)
            store.get(f"densefeat/enter/{ticket}")
            yield
            store.set(f"densefeat/done/{ticket}", "")
            store.delete_key(f"densefeat/ask/{self.rank}")
            return
        stopped = threading.Event()
        usher = threading.Thread(target=self.let_in, args=(store, stopped), daemon=True)
        usher.start()
        try:
            yield
        except BaseException:
            stopped.set()
            raise
        while usher.is_alive():  # joined bit by bit, so that signals are seen
            usher.join(_POLL_SECONDS)

    def let_in(self, store: Store, stopped: threading.Event) -> None:
        """Answer every ticket, until each rank has come in and is done."""
        answered: dict[int, set[str]] = {rank: set() for rank in range(1, self.world)}
        while answered and not stopped.wait(_POLL_SECONDS):
            for rank, tickets in list(answered.items()):
                if store.check([key := f"densefeat/ask/{rank}"]) and (ticket := store.get(key).decode()) not in tickets:
                    store.set(f"densefeat/enter/{ticket}", "")
                    tickets.add(ticket)
                if any(store.check([f"densefeat/done/{ticket}"]) for ticket in tickets):
                    del answered[rank]

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
