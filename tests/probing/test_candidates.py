"""Candidates: heads on blocks alone and together, and how the best is chosen."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, r2_score

import densefeat
from densefeat.errors import UsageError
from densefeat.labels.splits import TEST, VAL, split_rows
from densefeat.labels.targets import Targets
from densefeat.probing.candidates import (
    BlockFitter,
    Candidate,
    _name_addition,
    count_settings,
    fit_candidates,
    fit_few_shots,
    select_candidate,
)
from densefeat.probing.data import _open_columns
from densefeat.probing.fitting import LinearHead
from densefeat.probing.protocols import GRIDS, ProbeFit, fit_head
from support.probes import draw_codes, make_features, single_targets, write_probe_store

VAL_TARGETS, TEST_TARGETS = single_targets([0, 1, 2, 0, 1, 2]), single_targets(np.arange(60) % 3)


def make_scores(targets: Targets, wrong: int) -> np.ndarray:
    """Scores for targets of three classes; they are wrong for the first ``wrong`` rows."""
    shifted = (targets.values + (np.arange(len(targets)) < wrong)) % 3
    return np.eye(3, dtype=np.float32)[shifted]


def candidate(name: str, val_wrong: int, test_wrong: int, features: int = 4) -> Candidate:
    head = LinearHead(np.zeros((3, features), np.float32), np.zeros(3, np.float32))
    fitted = ProbeFit(head, {"C": 1.0}, [{"C": 1.0, "top1": 50.0}], make_scores(VAL_TARGETS, val_wrong))
    return Candidate(name, (name,), features, fitted, make_scores(TEST_TARGETS, test_wrong))


def test_selected_on_validation_and_reported_on_test() -> None:
    selection = select_candidate(
        [candidate("a", 2, 0), candidate("b", 1, 30), candidate("c", 3, 10)], VAL_TARGETS, TEST_TARGETS
    )
    assert (selection.best.name, selection.runner_up.name) == ("b", "a")
    assert [report.name for report in selection.reports] == ["a", "b", "c"]
    assert (
        selection.best.test["top1"] == 100 * accuracy_score(TEST_TARGETS.values, make_scores(TEST_TARGETS, 30).argmax(1)) == 50
    )
    low, high = selection.best.intervals["top1"]
    assert 35 < low < 50 < high < 65
    assert selection.comparison is not None
    assert (selection.comparison.metric, selection.comparison.test, selection.comparison.difference) == ("top1", "mcnemar", -50)
    assert selection.comparison.p_value < 1e-6
    np.testing.assert_array_equal(selection.scores, make_scores(TEST_TARGETS, 30))


def test_equals_are_decided_by_size_then_order() -> None:
    candidates = [
        candidate("wide", 1, 0, 8),
        candidate("first", 1, 0, 4),
        candidate("second", 1, 0, 4),
        candidate("worse", 2, 0, 1),
    ]
    selection = select_candidate(candidates, VAL_TARGETS, TEST_TARGETS)
    assert (selection.best.name, selection.runner_up.name) == ("first", "second")
    assert selection.head is candidates[1].fit.head


def test_candidates_may_come_one_by_one() -> None:
    candidates = [candidate(f"{i}", i % 4, i) for i in range(8)]
    assert (
        select_candidate(iter(candidates), VAL_TARGETS, TEST_TARGETS, 3).reports
        == select_candidate(candidates, VAL_TARGETS, TEST_TARGETS, 3).reports
    )


def test_one_alone_and_none() -> None:
    selection = select_candidate([candidate("a", 0, 1)], VAL_TARGETS, TEST_TARGETS)
    assert (selection.best, selection.runner_up, selection.comparison) == (selection.reports[0], None, None)
    with pytest.raises(UsageError, match="no candidates to choose from"):
        select_candidate([], VAL_TARGETS, TEST_TARGETS)


def test_without_test_rows() -> None:
    one = candidate("a", 1, 0)
    selection = select_candidate([Candidate("a", ("a",), 4, one.fit, None)] * 2, VAL_TARGETS, TEST_TARGETS.take(np.arange(0)))
    assert (selection.best.test, selection.best.intervals, selection.comparison, selection.scores) == ({}, {}, None, None)
    assert selection.best.val["top1"] == pytest.approx(100 * 5 / 6)


def test_equal_numbers_in_the_test_rows() -> None:
    """R² is not defined there: nothing is compared, the errors are done."""
    val, test = (Targets("regression", (), values) for values in (np.arange(5.0), np.ones(5)))
    head = LinearHead(np.zeros((1, 2), np.float32), np.zeros(1, np.float32), True)
    candidates = []
    for noise in (0.1, 0.2):
        guess = (np.arange(5) + noise).astype(np.float32)
        candidates.append(
            Candidate(f"{noise}", ("a",), 2, ProbeFit(head, {"l2": 1.0}, [], guess), np.ones(5, np.float32) + noise)
        )
    selection = select_candidate(candidates, val, test)
    assert selection.comparison is None
    assert selection.best.test["r2"] is None
    assert selection.best.test["mae"] == pytest.approx(0.1)
    assert selection.best.val["r2"] == pytest.approx(r2_score(np.arange(5), np.arange(5) + 0.1), abs=1e-6)


WIDTHS = {"a": 5, "b": 3, "c": 4, "d": 6}


def make_fitter(
    folder: Path, protocol: str = "ridge", widths: dict[str, int] = WIDTHS, rows: int = 400
) -> tuple[BlockFitter, list[int]]:
    codes = draw_codes(rows, 5)
    store = densefeat.open_store(write_probe_store(folder / "s.parquet", None, make_features(codes, widths=widths)))
    targets, done = single_targets(codes), list[int]()
    return BlockFitter(
        protocol, _open_columns([store])[0], targets, np.arange(rows), split_rows(targets, 0), 0, done.append
    ), done


def fit_naively(fitter: BlockFitter, names: list[str]) -> tuple[float, np.ndarray]:
    """Validation accuracy and test scores by a fit without the fitter."""
    store = fitter.columns.stores[0]
    x = np.concatenate([store[name] for name in sorted(names)], 1)
    fitting = fitter.parts != TEST
    selection = fit_head(fitter.protocol, x[fitting].copy(), fitter.targets.take(fitting), fitter.parts[fitting] == VAL)
    return accuracy_score(fitter.targets.values[fitter.parts == VAL], selection.val_scores.argmax(1)), selection.head.scores(
        x[~fitting]
    )


@pytest.mark.parametrize("protocol", ["ridge", "knn"])
def test_the_greedy_order_is_that_of_the_validation_metric(tmp_path: Path, protocol: str) -> None:
    fitter, done = make_fitter(tmp_path, protocol)
    selection = list(fit_candidates(fitter))
    assert [candidate.columns for candidate in selection[:4]] == [("a",), ("b",), ("c",), ("d",)]
    left, added, expected = list(WIDTHS), list[str](), []
    while len(added) < 3:
        best = max(left, key=lambda name: (fit_naively(fitter, [*added, name])[0], -WIDTHS[name]))
        left.remove(best)
        added.append(best)
        expected.append((_name_addition(added), tuple(sorted(added))))
    assert [(candidate.name, candidate.columns) for candidate in selection[4:]] == [
        *expected[1:],
        ("all", ("a", "b", "c", "d")),
    ]
    for candidate in selection:
        rating, scores = fit_naively(fitter, list(candidate.columns))
        np.testing.assert_allclose(candidate.test_scores, scores, atol=1e-5)
        assert candidate.features == sum(WIDTHS[name] for name in candidate.columns)
        assert rating == accuracy_score(fitter.targets.values[fitter.parts == VAL], candidate.fit.val_scores.argmax(1))
    assert sum(done) == count_settings(protocol, 4) == len(GRIDS[protocol]) * (4 + 3 + 2 + 1)


@pytest.mark.parametrize(("count", "names"), [(1, ["a"]), (2, ["a", "b", "all"])])
def test_few_columns(tmp_path: Path, count: int, names: list[str]) -> None:
    fitter, done = make_fitter(tmp_path, widths=dict(list(WIDTHS.items())[:count]))
    assert [candidate.name for candidate in fit_candidates(fitter)] == names
    assert sum(done) == count_settings("ridge", count)


def test_names_stay_short() -> None:
    assert _name_addition(["b", "a"]) == "b + a"
    assert _name_addition(["b", "a", "c"]) == "3 columns, + c"


def test_few_shots(tmp_path: Path) -> None:
    fitter, _ = make_fitter(tmp_path, widths={"a": 5, "b": 3}, rows=120)
    selection = fit_few_shots(fitter)
    assert [(entry["name"], entry["shots"]) for entry in selection] == [
        (name, shots) for name in ("a", "b", "all") for shots in (1, 5, 10)
    ]  # no class has 25 training rows
    assert [entry["rows"] for entry in selection[:2]] == [5, 25]
    for entry in selection:
        assert entry["mean"] == pytest.approx(np.mean(entry["values"]))
        assert entry["deviation"] == pytest.approx(np.std(entry["values"], ddof=1))
        assert len(entry["values"]) == 3
    assert selection[8]["mean"] > selection[6]["mean"] > 20  # more images help, and five classes are done apart
    assert fit_few_shots(fitter) == selection
