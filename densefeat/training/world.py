"""The processes of one run, alone or under torchrun, and what they tell each other."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from densefeat.errors import DensefeatError, UsageError

_WAIT_SECONDS, _POLL_SECONDS = 1800, 0.05
_LONGEST_SECONDS = 4 * 3600  # that the others wait for what rank 0 does alone, as fitting a probe


@dataclass(frozen=True)
class World:
    """``size`` processes, of which this is ``rank``; each has a device of its own."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, on the CPU: any shape, dtype as given."""
        values = values.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: list[float]) -> list[float]:
        """The maximum over all ranks of each value."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def tell(self, value: str | None) -> str | None:
        """What rank 0 says."""
        told = [value]
        if self.size > 1:
            dist.broadcast_object_list(told)
        return told[0]

    def everyone(self, value: Any) -> list[Any]:
        """What each rank says, in their order."""
        said = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(said, value)
        return said

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """A tensor of each rank, all of one shape, on the CPU."""
        if self.size == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values)
        return gathered

    def same(self, tensors: list[torch.Tensor]) -> None:
        """As rank 0 has them."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def same_buffers(self, model: nn.Module) -> None:
        """BatchNorm's statistics as rank 0 has them: those that training goes on from."""
        self.same(list(model.buffers()))

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str | None = None) -> Iterator[World]:
    """This process's place: under torchrun that of its environment, else the only one.

    ``device``: None for the GPU of this process, or the CPU where there is none. Raises UsageError where it does not exist.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = own_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1:
        _join(rank, size, "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    except RuntimeError as error:
        if size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise DensefeatError(f"rank {rank} lost the others ({str(error).splitlines()[0]}); see what ended first") from error
        raise
    finally:
        if size > 1:
            dist.destroy_process_group()


def _join(rank: int, size: int, backend: str) -> None:
    """The default process group, under a name that is new: torchrun's store still holds addresses from before a restart."""
    store, _, _ = next(iter(dist.rendezvous("env://", rank, size)))
    name = _invite(store, size) if rank == 0 else _accept(store, rank)
    timeout = timedelta(seconds=_LONGEST_SECONDS)
    dist.init_process_group(backend, timeout=timeout, store=dist.PrefixStore(name, store), rank=rank, world_size=size)


def _invite(store: dist.Store, size: int) -> str:
    """Rank 0 tells every ticket a new name, until a ticket of each rank has confirmed it: older tickets stay unanswered."""
    name, waiting = f"densefeat/{uuid.uuid4().hex}", set(range(1, size))
    told: set[str] = set()
    end = time.monotonic() + _WAIT_SECONDS
    while waiting:
        for rank in list(waiting):
            if store.check([key := f"densefeat/train/ask/{rank}"]):
                ticket = store.get(key).decode()
                if ticket not in told:
                    store.set(f"densefeat/train/{ticket}", name)
                    told.add(ticket)
                if store.check([f"{name}/{ticket}"]):
                    waiting.discard(rank)
        if time.monotonic() > end:
            raise DensefeatError(f"ranks {sorted(waiting)} did not come within {_WAIT_SECONDS} s: start all {size} processes")
        time.sleep(_POLL_SECONDS)
    return name


def _accept(store: dist.Store, rank: int) -> str:
    ticket = uuid.uuid4().hex
    store.set(f"densefeat/train/ask/{rank}", ticket)
    name = store.get(f"densefeat/train/{ticket}").decode()
    store.set(f"{name}/{ticket}", "here")
    return name


def own_device(device: str | None, local_rank: int) -> torch.device:
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r}: no such kind of device") from error
    if chosen.type != "cuda":
        return chosen
    index = local_rank if chosen.index is None else chosen.index
    if index >= torch.cuda.device_count():
        raise UsageError(f"device {name!r}: there are {torch.cuda.device_count()} GPUs here, and this is process {local_rank}")
    return torch.device("cuda", index)
