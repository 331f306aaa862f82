"""Orders of an epoch: permutations, by seed and epoch alone, that a reader of row groups can follow."""

import numpy as np
import pytest

from densefeat.training.sampling import _CHUNK, _LANES, _WINDOW, epoch_order, split_off

GROUPS = {
    "one": [50],
    "some": [7, 1, 30, 2],
    "empty ones": [0, 7, 0, 0, 30, 2, 0],
    "many": [5] * 300,
    "uneven": np.random.default_rng(0).integers(0, 60, 200).tolist(),
}


@pytest.mark.parametrize("groups", [None, *GROUPS.values()], ids=["none", *GROUPS])
def test_a_permutation_by_seed_and_epoch(groups: list[int] | None) -> None:
    sizes = None if groups is None else np.array(groups)
    positions = np.arange(500 if groups is None else sum(groups))
    order = epoch_order(positions, sizes, seed=3, epoch=2)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), positions)
    assert np.array_equal(order, epoch_order(positions, sizes, seed=3, epoch=2))
    others = [epoch_order(positions, sizes, seed, epoch) for seed, epoch in ((3, 1), (3, 3), (2, 2), (2, 3))]
    assert not any(np.array_equal(order, other) for other in others)
    assert not np.array_equal(order, positions)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_some_positions_alone(groups: list[int]) -> None:
    """As they are after images were held out, or have no label."""
    positions = np.flatnonzero(np.random.default_rng(1).random(sum(groups)) < 0.6)
    order = epoch_order(positions, np.array(groups), seed=0, epoch=0)
    assert np.array_equal(np.sort(order), positions)


@pytest.mark.parametrize("size", [3, 40, 100])
def test_few_groups_are_open_at_once(size: int) -> None:
    groups = np.full(1000, size)
    order = epoch_order(np.arange(groups.sum()), groups, seed=0, epoch=0)
    group = order // size
    last = np.zeros(1000, int)
    last[group] = np.arange(len(group))
    open_, most = set[int](), 0
    for place, number in enumerate(group.tolist()):
        open_.add(number)
        most = max(most, len(open_))
        if last[number] == place:
            open_.remove(number)
    assert most <= _LANES * _WINDOW
    assert most > _LANES  # and it mixes more than one group a lane


def test_groups_are_mixed_within_a_batch() -> None:
    """What lies together in the files, where classes lie together, is not one batch."""
    groups = np.full(320, 100)
    group = epoch_order(np.arange(groups.sum()), groups, seed=0, epoch=0) // 100
    assert [len(set(group[start : start + _LANES * _CHUNK].tolist())) for start in (0, 5000, 20000)] == [_LANES * _WINDOW] * 3


@pytest.mark.parametrize("count", [0, 1, 30, 100])
def test_held_out(count: int) -> None:
    positions = np.sort(np.random.default_rng(0).permutation(1000)[:100])
    kept, chosen = split_off(positions, count, seed=5)
    assert (len(kept), len(chosen)) == (100 - count, count)
    assert np.array_equal(np.union1d(kept, chosen), positions)
    assert np.array_equal(kept, np.sort(kept))
    assert np.array_equal(chosen, np.sort(chosen))
    again = split_off(positions, count, seed=5)
    assert np.array_equal(again[1], chosen)


def test_held_out_by_the_seed() -> None:
    positions = np.arange(100)
    chosen = [split_off(positions, 20, seed)[1].tolist() for seed in range(3)]
    assert chosen[0] != chosen[1] != chosen[2]
    assert sorted(epoch_order(positions, None, 0, 0)[:20].tolist()) != chosen[0]  # its own draws, none of an epoch's
