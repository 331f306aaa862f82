"""Candidates: heads on blocks alone and together, and how the best is chosen."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, r2_score

import densefeat
from densefeat.errors import UsageError
from densefeat.labels.splits import TEST, VAL, split_rows
from densefeat.labels.targets import Targets
from densefeat.probe.candidates import (
    BlockFitter,
    Candidate,
    _name_addition,
    count_settings,
    fit_candidates,
    fit_few_shots,
    select_candidate,
)
from densefeat.probe.data import open_columns
from densefeat.probe.fitting import Linear
from densefeat.probe.protocols import GRIDS, ProbeFit, fit_head
from support.probes import codes_of, features_of, single, write_probe_store

VAL_TARGETS, TEST_TARGETS = single([0, 1, 2, 0, 1, 2]), single(np.arange(60) % 3)


def scores_of(targets: Targets, wrong: int) -> np.ndarray:
    """Of which the first ``wrong`` rows are."""
    shifted = (targets.values + (np.arange(len(targets)) < wrong)) % 3
    return np.eye(3, dtype=np.float32)[shifted]


def candidate(name: str, val_wrong: int, test_wrong: int, features: int = 4) -> Candidate:
    head = Linear(np.zeros((3, features), np.float32), np.zeros(3, np.float32))
    fitted = ProbeFit(head, {"C": 1.0}, [{"C": 1.0, "top1": 50.0}], scores_of(VAL_TARGETS, val_wrong))
    return Candidate(name, (name,), features, fitted, scores_of(TEST_TARGETS, test_wrong))


def test_chosen_on_validation_told_by_test() -> None:
    found = select_candidate([candidate("a", 2, 0), candidate("b", 1, 30), candidate("c", 3, 10)], VAL_TARGETS, TEST_TARGETS)
    assert (found.winner.name, found.outcomes[found.next].name) == ("b", "a")
    assert [outcome.name for outcome in found.outcomes] == ["a", "b", "c"]
    assert found.winner.test["top1"] == 100 * accuracy_score(TEST_TARGETS.values, scores_of(TEST_TARGETS, 30).argmax(1)) == 50
    low, high = found.winner.intervals["top1"]
    assert 35 < low < 50 < high < 65
    assert found.comparison is not None
    assert (found.comparison.metric, found.comparison.test, found.comparison.difference) == ("top1", "mcnemar", -50)
    assert found.comparison.p_value < 1e-6
    np.testing.assert_array_equal(found.scores, scores_of(TEST_TARGETS, 30))


def test_of_equals_the_smaller_then_the_first() -> None:
    some = [candidate("wide", 1, 0, 8), candidate("first", 1, 0, 4), candidate("second", 1, 0, 4), candidate("worse", 2, 0, 1)]
    found = select_candidate(some, VAL_TARGETS, TEST_TARGETS)
    assert (found.winner.name, found.outcomes[found.next].name) == ("first", "second")
    assert found.head is some[1].fitted.head


def test_one_by_one_gives_the_same_as_at_once() -> None:
    some = [candidate(f"{i}", i % 4, i) for i in range(8)]
    assert (
        select_candidate(iter(some), VAL_TARGETS, TEST_TARGETS, 3).outcomes
        == select_candidate(some, VAL_TARGETS, TEST_TARGETS, 3).outcomes
    )


def test_one_alone_and_none() -> None:
    found = select_candidate([candidate("a", 0, 1)], VAL_TARGETS, TEST_TARGETS)
    assert (found.best, found.next, found.comparison) == (0, None, None)
    with pytest.raises(UsageError, match="no candidates to choose from"):
        select_candidate([], VAL_TARGETS, TEST_TARGETS)


def test_without_test_rows() -> None:
    one = candidate("a", 1, 0)
    found = select_candidate([Candidate("a", ("a",), 4, one.fitted, None)] * 2, VAL_TARGETS, TEST_TARGETS.take(np.arange(0)))
    assert (found.winner.test, found.winner.intervals, found.comparison, found.scores) == ({}, {}, None, None)
    assert found.winner.val["top1"] == pytest.approx(100 * 5 / 6)


def test_numbers_that_are_all_alike_in_the_test_rows() -> None:
    """R² is not defined there: nothing is compared, the errors are told."""
    val, test = (Targets("regression", (), values) for values in (np.arange(5.0), np.ones(5)))
    head = Linear(np.zeros((1, 2), np.float32), np.zeros(1, np.float32), True)
    some = []
    for noise in (0.1, 0.2):
        guess = (np.arange(5) + noise).astype(np.float32)
        some.append(Candidate(f"{noise}", ("a",), 2, ProbeFit(head, {"l2": 1.0}, [], guess), np.ones(5, np.float32) + noise))
    found = select_candidate(some, val, test)
    assert found.comparison is None
    assert found.winner.test["r2"] is None
    assert found.winner.test["mae"] == pytest.approx(0.1)
    assert found.winner.val["r2"] == pytest.approx(r2_score(np.arange(5), np.arange(5) + 0.1), abs=1e-6)


WIDTHS = {"a": 5, "b": 3, "c": 4, "d": 6}


def fits_of(
    folder: Path, protocol: str = "ridge", widths: dict[str, int] = WIDTHS, rows: int = 400
) -> tuple[BlockFitter, list[int]]:
    codes = codes_of(rows, 5)
    store = densefeat.open_store(write_probe_store(folder / "s.parquet", None, features_of(codes, widths=widths)))
    targets, told = single(codes), list[int]()
    return BlockFitter(
        protocol, open_columns([store])[0], targets, np.arange(rows), split_rows(targets, 0), 0, told.append
    ), told


def naive(fits: BlockFitter, names: list[str]) -> tuple[float, np.ndarray]:
    """Validation accuracy, and test scores, by a fit of its own."""
    store = fits.columns.stores[0]
    x = np.concatenate([store[name] for name in sorted(names)], 1)
    fitting = fits.parts != TEST
    found = fit_head(fits.protocol, x[fitting].copy(), fits.targets.take(fitting), fits.parts[fitting] == VAL)
    return accuracy_score(fits.targets.values[fits.parts == VAL], found.val_scores.argmax(1)), found.head.scores(x[~fitting])


@pytest.mark.parametrize("protocol", ["ridge", "knn"])
def test_the_greedy_order_is_that_of_the_validation_metric(tmp_path: Path, protocol: str) -> None:
    fits, told = fits_of(tmp_path, protocol)
    found = list(fit_candidates(fits))
    assert [candidate.columns for candidate in found[:4]] == [("a",), ("b",), ("c",), ("d",)]
    left, added, expected = list(WIDTHS), list[str](), []
    while len(added) < 3:
        best = max(left, key=lambda name: (naive(fits, [*added, name])[0], -WIDTHS[name]))
        left.remove(best)
        added.append(best)
        expected.append((_name_addition(added), tuple(sorted(added))))
    assert [(candidate.name, candidate.columns) for candidate in found[4:]] == [*expected[1:], ("all", ("a", "b", "c", "d"))]
    for candidate in found:
        rating, scores = naive(fits, list(candidate.columns))
        np.testing.assert_allclose(candidate.test_scores, scores, atol=1e-5)
        assert candidate.features == sum(WIDTHS[name] for name in candidate.columns)
        assert rating == accuracy_score(fits.targets.values[fits.parts == VAL], candidate.fitted.val_scores.argmax(1))
    assert sum(told) == count_settings(protocol, 4) == len(GRIDS[protocol]) * (4 + 3 + 2 + 1)


@pytest.mark.parametrize(("count", "names"), [(1, ["a"]), (2, ["a", "b", "all"])])
def test_few_columns(tmp_path: Path, count: int, names: list[str]) -> None:
    fits, told = fits_of(tmp_path, widths=dict(list(WIDTHS.items())[:count]))
    assert [candidate.name for candidate in fit_candidates(fits)] == names
    assert sum(told) == count_settings("ridge", count)


def test_names_stay_short() -> None:
    assert _name_addition(["b", "a"]) == "b + a"
    assert _name_addition(["b", "a", "c"]) == "3 columns, + c"


def test_few_shots(tmp_path: Path) -> None:
    fits, _ = fits_of(tmp_path, widths={"a": 5, "b": 3}, rows=120)
    found = fit_few_shots(fits)
    assert [(entry["name"], entry["shots"]) for entry in found] == [
        (name, shots) for name in ("a", "b", "all") for shots in (1, 5, 10)
    ]  # no class has 25 training rows
    assert [entry["rows"] for entry in found[:2]] == [5, 25]
    for entry in found:
        assert entry["mean"] == pytest.approx(np.mean(entry["values"]))
        assert entry["deviation"] == pytest.approx(np.std(entry["values"], ddof=1))
        assert len(entry["values"]) == 3
    assert found[8]["mean"] > found[6]["mean"] > 20  # more images help, and five classes are told apart
    assert fit_few_shots(fits) == found
