"""Blocks alone, added greedily, and all: against fits one by one."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

import densefeat
from densefeat.labels.splits import TEST, VAL, split
from densefeat.probe.blocks import BlockFits, _name_of, candidates, few_shot, number_of_settings
from densefeat.probe.columns import columns_of
from densefeat.probe.protocols import GRIDS, fit
from support.probes import codes_of, features_of, single, write_probe_store

WIDTHS = {"a": 5, "b": 3, "c": 4, "d": 6}


def fits_of(
    folder: Path, protocol: str = "ridge", widths: dict[str, int] = WIDTHS, rows: int = 400
) -> tuple[BlockFits, list[int]]:
    codes = codes_of(rows, 5)
    store = densefeat.open_store(write_probe_store(folder / "s.parquet", None, features_of(codes, widths=widths)))
    targets, told = single(codes), list[int]()
    return BlockFits(protocol, columns_of([store])[0], targets, np.arange(rows), split(targets, 0), 0, told.append), told


def naive(fits: BlockFits, names: list[str]) -> tuple[float, np.ndarray]:
    """Validation accuracy, and test scores, by a fit of its own."""
    store = fits.columns.stores[0]
    x = np.concatenate([store[name] for name in sorted(names)], 1)
    fitting = fits.parts != TEST
    found = fit(fits.protocol, x[fitting].copy(), fits.targets.take(fitting), fits.parts[fitting] == VAL)
    return accuracy_score(fits.targets.values[fits.parts == VAL], found.val_scores.argmax(1)), found.head.scores(x[~fitting])


@pytest.mark.parametrize("protocol", ["ridge", "knn"])
def test_the_greedy_order_is_that_of_the_validation_metric(tmp_path: Path, protocol: str) -> None:
    fits, told = fits_of(tmp_path, protocol)
    found = list(candidates(fits))
    assert [candidate.columns for candidate in found[:4]] == [("a",), ("b",), ("c",), ("d",)]
    left, added, expected = list(WIDTHS), list[str](), []
    while len(added) < 3:
        best = max(left, key=lambda name: (naive(fits, [*added, name])[0], -WIDTHS[name]))
        left.remove(best)
        added.append(best)
        expected.append((_name_of(added), tuple(sorted(added))))
    assert [(candidate.name, candidate.columns) for candidate in found[4:]] == [*expected[1:], ("all", ("a", "b", "c", "d"))]
    for candidate in found:
        rating, scores = naive(fits, list(candidate.columns))
        np.testing.assert_allclose(candidate.test_scores, scores, atol=1e-5)
        assert candidate.features == sum(WIDTHS[name] for name in candidate.columns)
        assert rating == accuracy_score(fits.targets.values[fits.parts == VAL], candidate.fitted.val_scores.argmax(1))
    assert sum(told) == number_of_settings(protocol, 4) == len(GRIDS[protocol]) * (4 + 3 + 2 + 1)


@pytest.mark.parametrize(("count", "names"), [(1, ["a"]), (2, ["a", "b", "all"])])
def test_few_columns(tmp_path: Path, count: int, names: list[str]) -> None:
    fits, told = fits_of(tmp_path, widths=dict(list(WIDTHS.items())[:count]))
    assert [candidate.name for candidate in candidates(fits)] == names
    assert sum(told) == number_of_settings("ridge", count)


def test_names_stay_short() -> None:
    assert _name_of(["b", "a"]) == "b + a"
    assert _name_of(["b", "a", "c"]) == "3 columns, + c"


def test_few_shots(tmp_path: Path) -> None:
    fits, _ = fits_of(tmp_path, widths={"a": 5, "b": 3}, rows=120)
    found = few_shot(fits)
    assert [(entry["name"], entry["shots"]) for entry in found] == [
        (name, shots) for name in ("a", "b", "all") for shots in (1, 5, 10)
    ]  # no class has 25 training rows
    assert [entry["rows"] for entry in found[:2]] == [5, 25]
    for entry in found:
        assert entry["mean"] == pytest.approx(np.mean(entry["values"]))
        assert entry["deviation"] == pytest.approx(np.std(entry["values"], ddof=1))
        assert len(entry["values"]) == 3
    assert found[8]["mean"] > found[6]["mean"] > 20  # more images help, and five classes are told apart
    assert few_shot(fits) == found
