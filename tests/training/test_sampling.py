"""Batches by step, and their parts by rank."""

import numpy as np
import pytest

from densefeat import UsageError
from densefeat.training.sampling import Sampler, epoch_order, micro_batch_slices


@pytest.mark.parametrize(
    ("batch_size", "ranks", "accumulation"), [(1, 1, 1), (8, 1, 1), (8, 2, 1), (8, 1, 4), (24, 3, 2), (256, 8, 4), (6, 6, 1)]
)
def test_parts_cover_a_batch_once(batch_size: int, ranks: int, accumulation: int) -> None:
    batch = np.arange(batch_size)
    parts = [micro_batch_slices(batch_size, accumulation, rank, ranks) for rank in range(ranks)]
    assert {len(own) for own in parts} == {accumulation}
    shares = [batch[part] for own in parts for part in own]
    assert {len(share) for share in shares} == {batch_size // (ranks * accumulation)}
    assert np.array_equal(np.concatenate(shares), batch)  # rank after rank, as if one computed them in turn


@pytest.mark.parametrize(
    ("batch_size", "ranks", "accumulation", "multiple"),
    [(8, 3, 1, 3), (8, 1, 3, 3), (8, 2, 8, 16), (10, 2, 2, 4), (1, 2, 1, 2)],
)
def test_a_batch_that_cannot_be_shared_out(batch_size: int, ranks: int, accumulation: int, multiple: int) -> None:
    message = f"batch_size {batch_size}: not to be shared out between {ranks} processes with accumulation {accumulation}; give a multiple of {multiple}$"
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
        assert np.array_equal(own, epoch_order(positions, sizes, 7, epoch)[:48])
    assert set(batches[:6].ravel().tolist()) != set(batches[6:].ravel().tolist())  # the rest is another one


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
