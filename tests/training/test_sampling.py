"""Batches by step and by rank, in orders that depend on seed and epoch alone."""

import numpy as np
import pytest

from densefeat import UsageError
from densefeat.training.sampling import _CHUNK, _LANES, _WINDOW, Sampler, _epoch_order, micro_batch_slices, split_off

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
    order = _epoch_order(positions, sizes, seed=3, epoch=2)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), positions)
    assert np.array_equal(order, _epoch_order(positions, sizes, seed=3, epoch=2))
    others = [_epoch_order(positions, sizes, seed, epoch) for seed, epoch in ((3, 1), (3, 3), (2, 2), (2, 3))]
    assert not any(np.array_equal(order, other) for other in others)
    assert not np.array_equal(order, positions)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_some_positions_alone(groups: list[int]) -> None:
    """Positions have gaps where images are held out or have no label."""
    positions = np.flatnonzero(np.random.default_rng(1).random(sum(groups)) < 0.6)
    order = _epoch_order(positions, np.array(groups), seed=0, epoch=0)
    assert np.array_equal(np.sort(order), positions)


@pytest.mark.parametrize("size", [3, 40, 100])
def test_few_groups_are_open_at_once(size: int) -> None:
    groups = np.full(1000, size)
    order = _epoch_order(np.arange(groups.sum()), groups, seed=0, epoch=0)
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
    """Images that are neighbours in the files, often of one class, do not form a batch."""
    groups = np.full(320, 100)
    group = _epoch_order(np.arange(groups.sum()), groups, seed=0, epoch=0) // 100
    assert [len(set(group[start : start + _LANES * _CHUNK].tolist())) for start in (0, 5000, 20000)] == [_LANES * _WINDOW] * 3


@pytest.mark.parametrize("count", [0, 1, 30, 100])
def test_split_off(count: int) -> None:
    positions = np.sort(np.random.default_rng(0).permutation(1000)[:100])
    kept, chosen = split_off(positions, count, seed=5)
    assert (len(kept), len(chosen)) == (100 - count, count)
    assert np.array_equal(np.union1d(kept, chosen), positions)
    assert np.array_equal(kept, np.sort(kept))
    assert np.array_equal(chosen, np.sort(chosen))
    again = split_off(positions, count, seed=5)
    assert np.array_equal(again[1], chosen)


def test_split_off_depends_on_the_seed() -> None:
    positions = np.arange(100)
    chosen = [split_off(positions, 20, seed)[1].tolist() for seed in range(3)]
    assert chosen[0] != chosen[1] != chosen[2]
    assert sorted(_epoch_order(positions, None, 0, 0)[:20].tolist()) != chosen[0]  # not the draws of an epoch


@pytest.mark.parametrize(
    ("batch_size", "ranks", "accumulation"), [(1, 1, 1), (8, 1, 1), (8, 2, 1), (8, 1, 4), (24, 3, 2), (256, 8, 4), (6, 6, 1)]
)
def test_micro_batches_cover_a_batch_once(batch_size: int, ranks: int, accumulation: int) -> None:
    batch = np.arange(batch_size)
    slices = [micro_batch_slices(batch_size, accumulation, rank, ranks) for rank in range(ranks)]
    assert {len(of_rank) for of_rank in slices} == {accumulation}
    shares = [batch[part] for of_rank in slices for part in of_rank]
    assert {len(share) for share in shares} == {batch_size // (ranks * accumulation)}
    assert np.array_equal(np.concatenate(shares), batch)  # in the order of the ranks


@pytest.mark.parametrize(
    ("batch_size", "ranks", "accumulation", "multiple"),
    [(8, 3, 1, 3), (8, 1, 3, 3), (8, 2, 8, 16), (10, 2, 2, 4), (1, 2, 1, 2)],
)
def test_a_batch_that_does_not_divide_evenly(batch_size: int, ranks: int, accumulation: int, multiple: int) -> None:
    message = f"batch_size {batch_size} does not divide evenly between {ranks} processes with accumulation {accumulation}; give a multiple of {multiple}$"
    with pytest.raises(UsageError, match=message):
        micro_batch_slices(batch_size, accumulation, 0, ranks)


@pytest.mark.parametrize("groups", [None, [13, 0, 9, 30, 1]], ids=["none", "groups"])
def test_two_epochs(groups: list[int] | None) -> None:
    positions = np.delete(np.arange(53), [4, 50])
    sizes = None if groups is None else np.array(groups)
    sampler = Sampler(positions, sizes, batch_size=8, seed=7)
    assert sampler.steps_per_epoch == 6
    batches = np.stack([sampler.batch(step) for step in range(12)])
    assert batches.shape == (12, 8)
    for epoch in range(2):
        own = batches[6 * epoch : 6 * epoch + 6].ravel()
        assert len(set(own.tolist())) == 48  # none twice
        assert set(own.tolist()) <= set(positions.tolist())
        assert np.array_equal(own, _epoch_order(positions, sizes, 7, epoch)[:48])
    assert set(batches[:6].ravel().tolist()) != set(batches[6:].ravel().tolist())  # other images are left over


def test_a_batch_is_determined_by_its_step() -> None:
    sampler = Sampler(np.arange(50), None, batch_size=8, seed=7)
    in_order = [sampler.batch(step) for step in range(24)]
    for step in np.random.default_rng(0).permutation(24).tolist():
        assert np.array_equal(sampler.batch(step), in_order[step])
        assert np.array_equal(Sampler(np.arange(50), None, 8, 7).batch(step), in_order[step])
    assert not np.array_equal(Sampler(np.arange(50), None, 8, 8).batch(0), in_order[0])


def test_exactly_one_batch_and_less() -> None:
    assert Sampler(np.arange(8), None, 8, 0).steps_per_epoch == 1
    with pytest.raises(UsageError, match="7 training images are less than one batch of 8$"):
        Sampler(np.arange(7), None, 8, 0)
