"""The processes of a run, alone or under torchrun, and their communication."""

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

_TIMEOUT_SECONDS = 4 * 3600  # the other ranks wait while rank 0 fits a probe


@dataclass(frozen=True)
class World:
    """The ``size`` processes of a run, of which this one is ``rank``. All of them must call the same methods in order."""

    rank: int
    size: int
    device: torch.device  # of this process

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, on the CPU: any shape and dtype."""
        values = values.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: list[float]) -> list[float]:
        """Return the maximum of each value over all ranks."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def broadcast(self, value: str | None) -> str | None:
        """Return the value that rank 0 passes."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def gather_tensors(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of all ranks, which have the same shape, on the CPU."""
        if self.size == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(gathered, values)
        return gathered

    def broadcast_tensors(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite tensors in place with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give all ranks the BatchNorm statistics of rank 0, which a checkpoint saves."""
        self.broadcast_tensors(list(model.buffers()))

    def wait_for_all(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str | None = None) -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun this process is the only one.

    ``device``: None for this process's GPU, or the CPU if there is none. Raises UsageError if the device does not exist.
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
    """Open the default process group in a new store: torchrun's still holds addresses from before a restart."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=_TIMEOUT_SECONDS)
    dist.init_process_group(backend, timeout=timeout, store=open_shared_store(ranks), rank=ranks.rank, world_size=ranks.world)
