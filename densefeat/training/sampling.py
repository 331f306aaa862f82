"""Which positions make up which batch, for every rank."""

from dataclasses import dataclass, field

import numpy as np

from densefeat.errors import UsageError
from densefeat.training.order import epoch_order


@dataclass
class Sampler:
    """Batches of ``batch_size`` of ``positions``: whole ones only, another permutation for every epoch.

    What an epoch leaves over (less than a batch) is other images in each epoch. ``groups``: see :func:`epoch_order`.
    ``chances``: of each position, summing to 1, for an epoch that draws with replacement; ``groups`` then do not count.
    """

    positions: np.ndarray
    groups: np.ndarray | None
    batch_size: int
    seed: int
    chances: np.ndarray | None = None
    _epoch: int = field(default=-1, repr=False)
    _order: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)

    def __post_init__(self) -> None:
        if len(self.positions) < self.batch_size:
            raise UsageError(f"{len(self.positions)} training images are less than one batch of {self.batch_size}")

    @property
    def steps_per_epoch(self) -> int:
        return len(self.positions) // self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """Positions of the whole batch of a step, int64 ``(batch_size,)``."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.order(epoch)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]

    def order(self, epoch: int) -> np.ndarray:
        if self.chances is None:
            return epoch_order(self.positions, self.groups, self.seed, epoch)
        random = np.random.default_rng([self.seed, epoch])
        return random.choice(self.positions, len(self.positions), p=self.chances)


def rank_parts(batch_size: int, accumulation: int, rank: int, ranks: int) -> list[slice]:
    """Where the parts that a rank computes, one after the other, lie in a batch. UsageError where it cannot be shared out."""
    size, rest = divmod(batch_size, ranks * accumulation)
    if rest:
        raise UsageError(
            f"batch_size {batch_size}: not to be shared out between {ranks} processes with accumulation {accumulation}; "
            f"give a multiple of {ranks * accumulation}"
        )
    first = rank * size * accumulation
    return [slice(first + part * size, first + (part + 1) * size) for part in range(accumulation)]
