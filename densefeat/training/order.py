"""Which image comes when: a function of seed, epoch and position alone, the same for any number of ranks and workers."""

import numpy as np

_LANES = 32  # runs through the row groups that an order is woven from
_CHUNK = 16  # images taken from a lane before the next one's turn
_WINDOW = 2  # row groups that a lane shuffles together


def epoch_order(positions: np.ndarray, groups: np.ndarray | None, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``positions``, int64 ``(n,)``.

    ``groups``: sizes of the runs of positions that are read together (Parquet's row groups). The order then goes through them
    in ``LANES`` lanes, each shuffling ``WINDOW`` random groups at a time, a chunk from each lane in turn: any reader has few
    groups open at once, and a rank or worker that takes every n-th batch meets few of the lanes.
    """
    random = np.random.default_rng([seed, epoch])
    if groups is None:
        return random.permutation(positions)
    owner = np.repeat(np.arange(len(groups)), groups)[positions]
    members = np.split(positions[np.argsort(owner, kind="stable")], np.cumsum(np.bincount(owner, minlength=len(groups)))[:-1])
    shuffled = random.permutation(len(groups))
    lanes = [_lane_order([members[group] for group in shuffled[lane::_LANES]], random) for lane in range(_LANES)]
    chunks = [(turn, lane) for lane, order in enumerate(lanes) for turn in range(0, len(order), _CHUNK)]
    return np.concatenate([lanes[lane][turn : turn + _CHUNK] for turn, lane in sorted(chunks)])


def _lane_order(groups: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    windows = [np.concatenate(groups[start : start + _WINDOW]) for start in range(0, len(groups), _WINDOW)]
    return np.concatenate([np.empty(0, np.int64), *(random.permutation(window) for window in windows)])


def held_out(positions: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``positions`` without ``count`` random ones, and those: both in their order."""
    chosen = np.random.default_rng([seed, 2**32]).permutation(len(positions))[:count]
    mask = np.zeros(len(positions), bool)
    mask[chosen] = True
    return positions[~mask], positions[mask]
