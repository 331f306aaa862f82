"""The order of images and their division into batches: they depend on seed and epoch alone, not on ranks or workers."""

from dataclasses import dataclass, field

import numpy as np

from densefeat.errors import UsageError

_LANES = 32  # independent sequences of row groups that an order is interleaved from
_CHUNK = 16  # images taken from a lane before the next lane's turn
_WINDOW = 2  # row groups that a lane shuffles together


@dataclass
class Sampler:
    """Full batches of ``batch_size`` of ``positions``, in a new permutation for every epoch.

    The images left over at an epoch's end (fewer than a batch) differ from epoch to epoch. ``groups``: see
    :func:`_epoch_order`. ``chances``: the probability of each position, summing to 1, for epochs drawn with replacement;
    ``groups`` are then ignored.
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
        """Return the positions of the batch of a step over all ranks, int64 ``(batch_size,)``."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.order(epoch)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]

    def order(self, epoch: int) -> np.ndarray:
        if self.chances is None:
            return _epoch_order(self.positions, self.groups, self.seed, epoch)
        random = np.random.default_rng([self.seed, epoch])
        return random.choice(self.positions, len(self.positions), p=self.chances)


def micro_batch_slices(batch_size: int, accumulation: int, rank: int, ranks: int) -> list[slice]:
    """Return where the micro-batches of a rank lie in a batch. UsageError where the batch does not divide evenly."""
    size, rest = divmod(batch_size, ranks * accumulation)
    if rest:
        raise UsageError(
            f"batch_size {batch_size} does not divide evenly between {ranks} processes with accumulation {accumulation}; "
            f"give a multiple of {ranks * accumulation}"
        )
    first = rank * size * accumulation
    return [slice(first + i * size, first + (i + 1) * size) for i in range(accumulation)]


def _epoch_order(positions: np.ndarray, groups: np.ndarray | None, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of ``positions``, int64 ``(n,)``, the same for any number of ranks and workers.

    ``groups``: the sizes of the ranges of positions that are read together (Parquet's row groups). The order then runs
    through them in ``_LANES`` lanes, each of which shuffles ``_WINDOW`` random groups at a time, and takes a chunk from
    each lane in turn. So any reader has few groups open at once, and a rank or worker that takes every n-th batch reads
    from few of the lanes.
    """
    random = np.random.default_rng([seed, epoch])
    if groups is None:
        return random.permutation(positions)
    owner = np.repeat(np.arange(len(groups)), groups)[positions]
    members = np.split(positions[np.argsort(owner, kind="stable")], np.cumsum(np.bincount(owner, minlength=len(groups)))[:-1])
    shuffled = random.permutation(len(groups))
    lanes = [_shuffle_lane([members[group] for group in shuffled[lane::_LANES]], random) for lane in range(_LANES)]
    chunks = [(turn, lane) for lane, order in enumerate(lanes) for turn in range(0, len(order), _CHUNK)]
    return np.concatenate([lanes[lane][turn : turn + _CHUNK] for turn, lane in sorted(chunks)])


def _shuffle_lane(groups: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    windows = [np.concatenate(groups[start : start + _WINDOW]) for start in range(0, len(groups), _WINDOW)]
    return np.concatenate([np.empty(0, np.int64), *(random.permutation(window) for window in windows)])


def split_off(positions: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off ``count`` random positions; return the rest and the ones split off, both in their order."""
    chosen = np.random.default_rng([seed, 2**32]).permutation(len(positions))[:count]
    mask = np.zeros(len(positions), bool)
    mask[chosen] = True
    return positions[~mask], positions[mask]
