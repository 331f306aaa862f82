"""Exact search agrees with scikit-learn and numpy, whatever the size of the chunks, and these bound its memory."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from densefeat.errors import UsageError
from densefeat.search.exact import find_nearest, find_pairs

SMALL = {"densefeat.search.vectors._CHUNK_BYTES": 4 * 24 * 300, "densefeat.search.exact.TILE_VALUES": 10_000}


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        for name, value in SMALL.items():
            monkeypatch.setattr(name, value)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nearest_are_those_of_scikit_learn(make_store, clustered: np.ndarray, metric: str, dtype: str) -> None:
    store = make_store({"block1": clustered}, dtype=dtype)
    values = store["block1"].astype(np.float64)
    queries = values[::130].astype(np.float32) + 0.01
    rows, scores = find_nearest(store, queries, "block1", 7, metric)
    distances, expected = NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(values).kneighbors(queries)
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, 1 - distances if metric == "cosine" else distances, atol=1e-6)


@pytest.mark.usefixtures("blocks")
def test_nearest_by_dot_product(make_store, clustered: np.ndarray) -> None:
    rows, scores = find_nearest(make_store({"block1": clustered}), clustered[:3], "block1", 5, "dot")
    products = clustered[:3].astype(np.float64) @ clustered.T.astype(np.float64)
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(scores, np.take_along_axis(products, rows, 1), rtol=1e-6)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_equally_near_rows_come_in_their_order(make_store, metric: str) -> None:
    """Equal vectors all over a store: in a matrix product their scores would depend on their positions."""
    one, other = np.random.default_rng(0).random((2, 24), np.float32)
    values = np.tile(one, (1000, 1))
    values[::3] = other / 10
    rows, scores = find_nearest(make_store({"block1": values}), values[1:2] * 1.01, "block1", 600, metric)
    assert rows[0].tolist() == [i for i in range(1000) if i % 3][:600]
    assert len(set(scores[0].tolist())) == 1


def test_k_beyond_the_store_gives_all_rows(make_store) -> None:
    values = np.float32([[1, 0], [0, 1], [1, 1]])
    rows, scores = find_nearest(make_store({"block1": values}), values[:1], "block1", 10)
    assert rows.tolist() == [[0, 2, 1]]
    np.testing.assert_allclose(scores, [[1, 0.5**0.5, 0]], atol=1e-7)


def test_rows_without_direction_are_never_found(make_store) -> None:
    values = np.float32([[0, 0], [-1, 0], [np.nan, 1], [1, 0]])
    rows, scores = find_nearest(make_store({"block1": values}), np.float32([[1, 0]]), "block1", 4)
    assert rows.tolist() == [[3, 1, -1, -1]]
    np.testing.assert_array_equal(scores, np.float32([[1, -1, np.nan, np.nan]]))


@pytest.mark.usefixtures("blocks")
def test_each_query_may_leave_out_a_row(make_store, clustered: np.ndarray) -> None:
    store = make_store({"block1": clustered})
    rows, _ = find_nearest(store, clustered[[5, 1999]], "block1", 3, leave_out=[5, -1])
    full, _ = find_nearest(store, clustered[[5, 1999]], "block1", 4)
    assert rows[0].tolist() == full[0, 1:].tolist()
    assert rows[1].tolist() == full[1, :3].tolist()


def test_maps_are_compared_flat(make_store) -> None:
    maps = np.random.default_rng(0).standard_normal((10, 3, 2, 2)).astype(np.float32)
    rows, scores = find_nearest(make_store({"block1": maps}), maps[4:5], "block1", 1)
    assert (rows.tolist(), scores.tolist()) == ([[4]], [[1.0]])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("metric", "threshold"), [("cosine", 0.93), ("euclidean", 1.2), ("dot", 20.0)])
def test_all_pairs_within_a_threshold(make_store, clustered: np.ndarray, metric: str, threshold: float) -> None:
    wide = clustered.astype(np.float64)
    if metric == "dot":
        true = wide @ wide.T
    else:
        true = pairwise_distances(wide, metric=metric)
        true = 1 - true if metric == "cosine" else true
    within = true <= threshold if metric == "euclidean" else true >= threshold
    expected = {(i, j) for i, j in np.argwhere(within).tolist() if i < j}
    assert 500 < len(expected) < 100_000
    done: list[int] = []
    found = find_pairs(make_store({"block1": clustered}), "block1", threshold, metric, progress=done.append)
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    assert len(found.first) == len(expected)
    assert found.complete
    assert sum(done) == 2000
    np.testing.assert_allclose(found.scores, true[found.first, found.second], rtol=1e-6)
    ordered = found.scores if metric == "euclidean" else -found.scores
    assert (np.lexsort((found.second, found.first, ordered)) == np.arange(len(ordered))).all()


@pytest.mark.parametrize("threshold", [1.0, 0.999999])
def test_equal_vectors_have_cosine_one(make_store, threshold: float) -> None:
    values = np.random.default_rng(0).random((300, 33), np.float32)
    values[200] = 7 * values[3]
    values[100] = values[50]
    found = find_pairs(make_store({"block1": values}), "block1", threshold)
    assert sorted(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(3, 200), (50, 100)]
    assert found.scores.tolist() == [1.0, 1.0]


def test_equal_vectors_have_distance_zero(make_store) -> None:
    values = 1000 + np.random.default_rng(0).random((300, 33), np.float32)  # where products of float32 say little
    values[100] = values[50]
    found = find_pairs(make_store({"block1": values}), "block1", 0.0, "euclidean")
    assert (found.first.tolist(), found.second.tolist(), found.scores.tolist()) == ([50], [100], [0.0])


def test_zero_vectors_are_in_no_pair(make_store) -> None:
    values = np.float32([[0, 0], [0, 0], [1, 1], [1, 1]])
    found = find_pairs(make_store({"block1": values}), "block1", -1.0)
    assert (found.first.tolist(), found.second.tolist()) == ([2], [3])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("max_pairs", "complete"), [(19_899, False), (19_900, True), (7, False)])
def test_pairs_are_bounded(make_store, max_pairs: int, complete: bool) -> None:
    found = find_pairs(make_store({"block1": np.ones((200, 24), np.float32)}), "block1", 0.5, max_pairs=max_pairs)
    assert (len(found.first), found.complete) == (max_pairs, complete)


def test_memory_is_bounded_by_the_chunks(make_store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vectors take 10 MB, all 8,000 × 8,000 products would take 256 MB; chunks of 1 MB are searched."""
    monkeypatch.setattr("densefeat.store.writer._ROW_GROUP_BYTES", 2**20)
    monkeypatch.setattr("densefeat.search.vectors._CHUNK_BYTES", 2**20)
    monkeypatch.setattr("densefeat.search.exact.TILE_VALUES", 2**18)
    store = make_store({"block1": np.random.default_rng(0).standard_normal((8_000, 320), np.float32)})
    query = store.read("block1", 0, 1)
    tracemalloc.start()
    try:
        find_nearest(store, query, "block1")
        nearest_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        find_pairs(store, "block1", 0.9)
        pairs_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert nearest_peak < 8 * 2**20
    assert pairs_peak < 12 * 2**20


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"queries": np.ones((1, 5))}, r"queries have 5 values, the vectors block1 of .*store.parquet 2"),
        ({"queries": np.ones((1, 2)), "k": 0}, "k 0: give at least 1"),
        ({"queries": np.ones((1, 2)), "metric": "l1"}, "metric 'l1': choose one of"),
        (
            {"queries": np.float32([[1, 2], [0, 0]])},
            r"query 1: nothing is near to a vector of zeros, NaN or infinities \(cosine\)",
        ),
        ({"queries": np.float32([[np.nan, 0]]), "metric": "dot"}, "query 0: nothing is near"),
    ],
)
def test_wrong_questions(make_store, arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        find_nearest(make_store({"block1": np.ones((3, 2), np.float32)}), column="block1", **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"threshold": float("nan")}, "threshold nan: give a number$"),
        ({"threshold": -1.0, "metric": "euclidean"}, "threshold -1.0: give a number of at least 0"),
        ({"threshold": 0.5, "max_pairs": 0}, "max_pairs 0: give at least 1"),
        ({"threshold": 0.5, "metric": "l1"}, "metric 'l1'"),
    ],
)
def test_wrong_thresholds(make_store, arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        find_pairs(make_store({"block1": np.ones((3, 2), np.float32)}), "block1", **arguments)
