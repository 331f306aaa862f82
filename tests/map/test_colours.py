"""The colours of points."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.map.colours import (
    _CLASS_COLOURS,
    _RIGHT,
    _WRONG,
    REST,
    ClassColouring,
    NumberColouring,
    colour_by_cluster,
    colour_by_values,
    predict_points,
)  # fmt: skip
from densefeat.map.rows import MapRows
from densefeat.probing.fitting import LinearHead
from densefeat.probing.probe_file import Probe
from densefeat.store.reader import open_store
from support.probes import write_probe_store

FEATURES = np.eye(3, dtype=np.float32)


def classes(texts: list[str | None]) -> ClassColouring:
    found = colour_by_values("label", texts)
    assert isinstance(found, ClassColouring)
    return found


def test_ten_classes_have_colours_of_their_own() -> None:
    found = classes([str(i % 10) for i in range(30)])
    assert found.entries == tuple((str(i), _CLASS_COLOURS[i], 3) for i in range(10))
    assert found.codes.tolist() == [i % 10 for i in range(30)]
    assert len(set(_CLASS_COLOURS)) == 10


def test_the_largest_of_many_and_the_others() -> None:
    texts = [f"class {i:03}" for i in range(200) for _ in range(3 if i >= 190 else 1)]
    found = classes(texts)
    assert [entry[0] for entry in found.entries[:10]] == [f"class {i}" for i in range(190, 200)]
    assert found.entries[10:] == (("190 others", REST, 190),)
    assert found.codes.tolist() == [10] * 190 + [i // 3 for i in range(30)]


def test_rows_without_a_label() -> None:
    found = classes(["b", None, "a"])
    assert found.entries[2] == ("no label", REST, 1)
    assert found.codes.tolist() == [1, 2, 0]
    assert classes([None, None]).entries == (("no label", REST, 2),)


def test_several_labels_are_a_class_together() -> None:
    assert [name for name, *_ in classes(["a|b", "a", "|"]).entries] == ["a", "a|b", "|"]


def test_numbers() -> None:
    found = colour_by_values("age", ["0.5", None, "3"])
    assert isinstance(found, NumberColouring)
    assert np.array_equal(found.values, np.array([0.5, np.nan, 3], np.float32), equal_nan=True)


def test_numbers_that_are_too_large_for_their_colours_have_none() -> None:
    found = colour_by_values("age", ["0.5", "1e300", "-1e300"])
    assert np.array_equal(found.values, np.array([0.5, np.nan, np.nan], np.float32), equal_nan=True)


def test_clusters_are_counted_from_one() -> None:
    found = colour_by_cluster("cluster", np.arange(12))
    assert [name for name, *_ in found.entries] == [*map(str, range(1, 11)), "2 others"]


@pytest.fixture
def shown(tmp_path: Path) -> MapRows:
    store = open_store(write_probe_store(tmp_path / "s.parquet", None, {"block1": FEATURES}, weights={"sha256": "1"}))
    return MapRows(store, np.arange(3), {"block1": "block1"}, {"block1": FEATURES})


def make_probe(shown: MapRows, task: str, names: tuple[str, ...], weight: np.ndarray) -> Probe:
    head = LinearHead(weight.astype(np.float32), np.zeros(len(weight), np.float32), squeeze=task == "regression")
    return Probe(task, names, ("block1",), shown.store.provenance, head)  # type: ignore[arg-type]


def test_right_and_wrong(shown: MapRows) -> None:
    made = predict_points(make_probe(shown, "single", ("a", "b", "c"), np.eye(3)), shown, ["a", "c", None])
    assert made.texts == ["a", "b", "c"]
    assert made.outcome.entries == (("wrong", _WRONG, 1), ("right", _RIGHT, 1), ("no label", REST, 1))
    assert made.outcome.codes.tolist() == [1, 0, 2]


def test_several_labels_are_right_in_any_order(shown: MapRows) -> None:
    probe = make_probe(shown, "multi", ("a", "b"), np.array([[1, 1, -1], [1, -1, -1]]))
    made = predict_points(probe, shown, ["b | a", "a|b", "|"])
    assert made.texts == ["a|b", "a", "|"]
    assert made.outcome.codes.tolist() == [1, 0, 1]


def test_errors_of_numbers(shown: MapRows) -> None:
    made = predict_points(make_probe(shown, "regression", (), np.array([[1.0, 2, 3]])), shown, ["1.5", "2", None])
    assert made.texts == ["1", "2", "3"]
    assert np.array_equal(made.outcome.values, np.array([0.5, 0, np.nan], np.float32), equal_nan=True)


def test_a_probe_of_another_network(shown: MapRows) -> None:
    probe = replace(make_probe(shown, "single", ("a", "b", "c"), np.eye(3)), provenance={"model": "made-up", "weights": "2"})
    with pytest.raises(UsageError, match=r"for features of made-up \(sha256 2\), and .* has those of made-up \(sha256 1\)"):
        predict_points(probe, shown, ["a", "b", "c"])
