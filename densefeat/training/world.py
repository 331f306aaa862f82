"""The processes of one run, alone or under torchrun, and what they tell each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from densefeat.base import Ranks, choose_device, open_shared_store
from densefeat.errors import DensefeatError

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
    ranks = Ranks.from_environment()
    chosen = choose_device(device, ranks)
    if chosen.index is not None and chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    elif chosen.type == "cuda":
        chosen = torch.device("cuda", torch.cuda.current_device())  # DistributedDataParallel needs the number
    if ranks.world > 1:
        _open_process_group(ranks, chosen)
    try:
        yield World(ranks.rank, ranks.world, chosen)
    except RuntimeError as error:
        if ranks.world > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            reason = str(error).splitlines()[0]
            raise DensefeatError(f"rank {ranks.rank} lost the others ({reason}); see what ended first") from error
        raise
    finally:
        if ranks.world > 1:
            dist.destroy_process_group()


def _open_process_group(ranks: Ranks, device: torch.device) -> None:
    """Open the default process group in a store of this start alone: torchrun's still holds addresses from before a restart."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=_LONGEST_SECONDS)
    dist.init_process_group(backend, timeout=timeout, store=open_shared_store(ranks), rank=ranks.rank, world_size=ranks.world)
