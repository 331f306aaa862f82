"""A meeting of all processes of a job, by the key-value store that torchrun keeps for them.

Rank 0 makes up a new name for the meeting. Every other rank leaves a new ticket; rank 0 answers tickets with the name; the
rank confirms its ticket under that name. torchrun's store may still hold the tickets, names and confirmations of processes that
it has restarted since: nobody waits for those, so they have no effect. A process group could hang at such a restart instead.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from torch.distributed import PrefixStore, Store, rendezvous

from densefeat.base.ranks import Ranks
from densefeat.errors import DensefeatError

_LISTING_DAYS = 1  # for rank 0 to list the input
_START_MINUTES = 30  # for all processes to start
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class _Invitation:
    """The meeting as rank 0 sees it: its ``name``, and the answered ``tickets`` of each rank that is still missing."""

    store: Store
    name: str
    tickets: dict[int, set[str]] = field(default_factory=dict)

    @classmethod
    def send(cls, store: Store, world: int) -> "_Invitation":
        return cls(store, uuid.uuid4().hex, {rank: set() for rank in range(1, world)})

    def poll(self) -> bool:
        """Answer new tickets; return whether every rank has confirmed one."""
        for rank, tickets in list(self.tickets.items()):
            ticket = self.store.get(key).decode() if self.store.check([key := f"densefeat/ask/{rank}"]) else None
            # a rank that has confirmed may already ask for the next meeting: its ticket is not this meeting's to answer
            if any(self.store.check([f"densefeat/{self.name}/{known}"]) for known in tickets):
                del self.tickets[rank]
            elif ticket is not None and ticket not in tickets:
                self.store.set(f"densefeat/enter/{ticket}", self.name)
                tickets.add(ticket)
        return not self.tickets


def _ask(store: Store, rank: int) -> tuple[str, str]:
    """Wait for rank 0; return the name of the meeting and the key that confirms it."""
    ticket = uuid.uuid4().hex
    store.set(f"densefeat/ask/{rank}", ticket)
    name = store.get(f"densefeat/enter/{ticket}").decode()
    return name, f"densefeat/{name}/{ticket}"


def _connect(ranks: Ranks, timeout: timedelta) -> Store:
    store, _, _ = next(iter(rendezvous("env://", ranks.rank, ranks.world, timeout=timeout)))
    return store


@contextmanager
def enter_after_rank_0(ranks: Ranks) -> Iterator[None]:
    """Enter at once as rank 0, as another rank once rank 0 has entered; rank 0 leaves when all others have left."""
    if ranks.world == 1:
        yield
        return
    store = _connect(ranks, timedelta(days=_LISTING_DAYS))
    if not ranks.first:
        _, confirmation = _ask(store, ranks.rank)
        yield
        store.set(confirmation, "")
        return
    invitation, failed = _Invitation.send(store, ranks.world), threading.Event()

    def admit() -> None:
        while not failed.wait(_POLL_SECONDS) and not invitation.poll():
            pass

    usher = threading.Thread(target=admit, daemon=True)
    usher.start()
    try:
        yield
    except BaseException:
        failed.set()
        raise
    while usher.is_alive():  # short waits, so that signals are handled
        usher.join(_POLL_SECONDS)


def open_shared_store(ranks: Ranks) -> Store:
    """Return a store that this start of the processes shares and no earlier one has written to.

    Raises DensefeatError where a process does not come within half an hour.
    """
    store = _connect(ranks, timedelta(minutes=_START_MINUTES))
    if not ranks.first:
        name, confirmation = _ask(store, ranks.rank)
        store.set(confirmation, "")
        return PrefixStore(name, store)
    invitation = _Invitation.send(store, ranks.world)
    end = time.monotonic() + 60 * _START_MINUTES
    while not invitation.poll():
        if time.monotonic() > end:
            missing = ", ".join(map(str, invitation.tickets))
            raise DensefeatError(
                f"ranks {missing} did not start within {_START_MINUTES} minutes: start all {ranks.world} processes"
            )
        time.sleep(_POLL_SECONDS)
    return PrefixStore(invitation.name, store)
