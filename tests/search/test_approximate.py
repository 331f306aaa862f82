"""Search by faiss: the same scores as exact search, and nearly all that it finds."""

import sys

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.search import approximate, exact

pytest.importorskip("faiss")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_recall_of_neighbours(make_store, clustered: np.ndarray, metric: str) -> None:
    """At least 98 % of the ten nearest to each of 200 queries are found in 16 of 50 cells."""
    store = make_store({"block1": clustered})
    leave_out = list(range(0, 2000, 10))
    true, true_scores = exact.find_nearest(store, clustered[::10], "block1", 10, metric, leave_out)
    rows, scores = approximate.find_nearest(store, clustered[::10], "block1", 10, metric, leave_out)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(true.tolist(), rows.tolist(), strict=True)])
    assert recall >= 0.98
    same = rows == true
    np.testing.assert_array_equal(scores[same], true_scores[same])


@pytest.mark.parametrize(("metric", "threshold"), [("cosine", 0.93), ("euclidean", 1.2)])
def test_recall_of_pairs(make_store, clustered: np.ndarray, metric: str, threshold: float) -> None:
    store = make_store({"block1": clustered})
    true = exact.find_pairs(store, "block1", threshold, metric)
    done: list[int] = []
    found = approximate.find_pairs(store, "block1", threshold, metric, progress=done.append)
    of_pair = dict(zip(zip(true.first.tolist(), true.second.tolist(), strict=True), true.scores, strict=True))
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) >= 0.98 * len(of_pair)
    np.testing.assert_array_equal(found.scores, [of_pair[pair] for pair in pairs])
    assert sum(done) == 2 * 2000
    assert found.complete


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equal_rows_are_found_with_their_numbers_in_the_store(make_store, clustered: np.ndarray, metric: str) -> None:
    """Rows that are not in the index do not shift the numbers; a threshold of distance 0 or cosine 1 includes equal rows."""
    clustered[[0, 7]] = np.nan
    clustered[1500] = clustered[40]
    store = make_store({"block1": clustered})
    found = approximate.find_pairs(store, "block1", 1.0 if metric == "cosine" else 0.0, metric)
    assert (found.first.tolist(), found.second.tolist()) == ([40], [1500])
    rows, _ = approximate.find_nearest(store, clustered[40:41], "block1", 2, metric)
    assert rows.tolist() == [[40, 1500]]


def test_pairs_are_bounded(make_store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.search.approximate._MAX_HITS", 2000)  # ten queries at a time
    store = make_store({"block1": np.tile(np.float32([1, 2, 3]), (200, 1))})
    found = approximate.find_pairs(store, "block1", 0.9, max_pairs=100)
    assert (len(found.first), found.complete) == (100, False)
    assert (found.first < found.second).all()
    assert len(approximate.find_pairs(store, "block1", 0.9).first) == 199 * 100


def test_a_store_of_few_rows(make_store) -> None:
    values = np.float32([[1, 0], [0, 1], [1, 1]])
    rows, _ = approximate.find_nearest(make_store({"block1": values}), values[:1], "block1", 10)
    assert rows.tolist() == [[0, 2, 1]]


def test_dot_products_have_no_cells(make_store) -> None:
    with pytest.raises(UsageError, match="metric 'dot' with engine faiss: choose cosine or euclidean, or engine exact"):
        approximate.find_pairs(make_store({"block1": np.ones((3, 2), np.float32)}), "block1", 0.5, "dot")


def test_without_faiss_the_extra_is_named(make_store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"pip install 'densefeat\[faiss\]'"):
        approximate.find_nearest(make_store({"block1": np.ones((3, 2), np.float32)}), np.ones((1, 2)), "block1")


def test_nothing_to_compare(make_store) -> None:
    with pytest.raises(UsageError, match="too few rows that can be compared, use engine exact"):
        approximate.find_pairs(make_store({"block1": np.zeros((3, 2), np.float32)}), "block1", 0.5)
