"""Splits: the share of every class, groups whole, the same every time."""

import hashlib

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.labels.splits import TEST, TRAIN, VAL, hold_out, hold_out_validation, split_rows, split_sha256
from densefeat.labels.targets import Targets
from support.probes import single_targets


def test_every_class_gives_its_share() -> None:
    targets = single_targets(np.repeat(range(4), (700, 200, 95, 5)))
    held = hold_out(targets, 0.2, seed=3)
    assert np.bincount(targets.values[held]).tolist() == [140, 40, 19, 1]
    assert held.dtype == bool


@pytest.mark.parametrize("grouped", [False, True])
def test_split_depends_on_the_seed_alone(grouped: bool) -> None:
    targets = single_targets(np.random.default_rng(0).integers(0, 5, 300))
    groups = np.random.default_rng(1).integers(0, 60, 300) if grouped else None
    first, again, other = (hold_out(targets, 0.3, seed, groups) for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 50), (1, 1, 9), (3, 1, 1), (1, 1, 1, 1, 1, 1)])
def test_small_classes_are_on_both_sides_if_possible(sizes: tuple[int, ...]) -> None:
    targets = single_targets(np.repeat(range(len(sizes)), sizes))
    held = hold_out(targets, 0.2, seed=0)
    assert 0 < held.sum() < len(held)
    if max(sizes) > 1:
        for k, size in enumerate(sizes):
            out = int(held[targets.values == k].sum())
            assert (1 <= out < size) if size > 1 else out == 0


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 80, 1000)
    targets = single_targets(generator.choice(4, 1000, p=[0.6, 0.25, 0.12, 0.03]))
    held = hold_out(targets, 0.2, seed, groups)
    for group in np.unique(groups):
        assert len(set(held[groups == group])) == 1
    shares = np.bincount(targets.values[held], minlength=4) / np.bincount(targets.values)
    assert abs(held.mean() - 0.2) < 0.02
    assert (np.abs(shares - 0.2) < 0.1).all()
    assert (shares > 0).all()


def test_a_class_in_two_groups_is_on_both_sides() -> None:
    """Patients of one class each, and a rare class of two patients."""
    groups = np.repeat(np.arange(22), 10)
    targets = single_targets(np.repeat(np.array([0] * 20 + [1] * 2), 10))
    for seed in range(5):
        held = hold_out(targets, 0.2, seed, groups)
        assert set(targets.values[held]) == set(targets.values[~held]) == {0, 1}


def test_groups_of_text_and_of_one_row_each() -> None:
    targets = single_targets([0, 1] * 20)
    names = np.array([f"patient {i}" for i in range(40)], object)
    assert hold_out(targets, 0.25, 0, names).sum() == 10
    assert (hold_out(targets, 0.25, 0, names) == hold_out(targets, 0.25, 0)).all()


def test_two_groups_go_to_two_sides() -> None:
    held = hold_out(single_targets([0, 1] * 20), 0.2, 0, np.repeat([0, 1], [30, 10]))
    assert held.sum() == 10


def test_multi_labels_are_stratified_by_the_rarest() -> None:
    values = np.zeros((400, 3), bool)
    values[:, 0] = True
    values[:20, 2] = True
    values[100:200, 1] = True
    held = hold_out(Targets("multi", ("a", "b", "c"), values), 0.1, 0)
    assert values[held].sum(0).tolist() == [40, 10, 2]


def test_numbers_are_stratified_by_tenths() -> None:
    values = np.random.default_rng(0).standard_normal(1000) ** 3
    held = hold_out(Targets("regression", (), values), 0.2, 0)
    assert held.sum() == 200
    tenths = np.argsort(np.argsort(values)) // 100
    assert np.bincount(tenths[held]).tolist() == [20] * 10


@pytest.mark.parametrize(
    ("rows", "share", "groups", "match"),
    [
        (1, 0.2, None, "1 rows with a label cannot be split"),
        (10, 0.0, None, "share 0.0 to hold out"),
        (10, 1.0, None, "share 1.0 to hold out"),
        (10, 0.2, np.zeros(10), "all 10 rows are in one group"),
    ],
)
def test_what_cannot_be_split(rows: int, share: float, groups: np.ndarray | None, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        hold_out(single_targets(np.zeros(rows), 2), share, 0, groups)


def test_three_parts() -> None:
    targets = single_targets(np.repeat(range(2), 100))
    parts = split_rows(targets, seed=0)
    assert np.bincount(parts).tolist() == [144, 16, 40]
    groups = np.arange(200) // 4
    grouped = split_rows(targets, 0, groups)
    assert all(len(set(grouped[groups == group])) == 1 for group in range(50))


def test_same_splits_as_in_earlier_versions() -> None:
    """Results of probes name the SHA-256 of their split: another split for the same seed would cut them off."""
    targets = single_targets(np.arange(100) % 7)
    paths = [f"{i}.jpg" for i in range(100)]
    assert split_sha256(paths, split_rows(targets, 3)) == "f73463fed120b828d41c1697ce0e18ca08721fbcb81ce0048ee13eeb31e87ca1"
    assert (
        split_sha256(paths, split_rows(targets, 3, np.arange(100) // 3))
        == "dc369030d29351b867194b750660e7e9996217a175c8254be2f072636f05ed97"
    )


def test_validation_comes_out_of_the_training_rows() -> None:
    before = np.array([TRAIN] * 100 + [TEST] * 50, np.int8)
    parts = hold_out_validation(single_targets([0, 1] * 75), before, seed=0)
    assert (parts[100:] == TEST).all()
    assert (parts == VAL).sum() == 10
    assert (before != VAL).all()


def test_the_hash_is_that_of_the_sorted_pairs() -> None:
    paths, parts = ["b", "a", "ü"], np.array([2, 0, 1], np.int8)
    expected = hashlib.sha256("a\0train\nb\0test\nü\0val\n".encode()).hexdigest()
    assert split_sha256(paths, parts) == expected
    order = [2, 0, 1]
    assert split_sha256([paths[i] for i in order], parts[order]) == expected
    assert split_sha256(paths, parts[::-1]) != expected
