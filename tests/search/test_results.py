"""The records and groups of results."""

import numpy as np

from densefeat.search.exact import find_nearest, find_pairs
from densefeat.search.results import Neighbours, Pairs, Query
from densefeat.store.entries import ImageEntry

VALUES = np.float32([[1, 0], [0, 1], [1, 0.1], [0, 0], [0.2, 1], [1, 0.3]])


def test_neighbours_as_records(make_store) -> None:
    places = [(0, 0), (8, 0), (16, 0), (24, 0), (32, 0), (40, 0)]
    store = make_store({"block1": VALUES}, labels=["p", None, "q", "r", "s", "t"], places=places)
    queries = (Query(ImageEntry("q.jpg")), Query(ImageEntry("1.jpg", None, 8, 0), 1))
    found = Neighbours(store, "block1", "cosine", queries, *find_nearest(store, VALUES[:2], "block1", 2))
    assert found.fields == ["query", "rank", "score", "path", "label", "x", "y"]
    assert [list(map(record.get, found.fields)) for record in found.records()] == [
        ["q.jpg", 1, 1.0, "0.jpg", "p", 0, 0],
        ["q.jpg", 2, 0.9950372, "2.jpg", "q", 16, 0],
        ["1.jpg:8,0", 1, 1.0, "1.jpg", None, 8, 0],
        ["1.jpg:8,0", 2, 0.9805807, "4.jpg", "s", 32, 0],
    ]
    assert found.summary() == {"query": ["q.jpg", "1.jpg:8,0"], "column": "block1", "metric": "cosine"}


def test_missing_neighbours_have_no_record(make_store) -> None:
    store = make_store({"block1": VALUES[[3, 0]]})
    found = Neighbours(store, "block1", "cosine", (Query(ImageEntry("q.jpg")),), *find_nearest(store, VALUES[:1], "block1", 5))
    assert found.fields == ["rank", "score", "path"]
    assert [record["path"] for record in found.records()] == ["1.jpg"]


def test_pairs_as_records_and_groups(make_store) -> None:
    """Rows 0, 2 and 5 are connected through 2; 1 and 4 are the other group, with a pair better than the worst of the first."""
    store = make_store({"block1": VALUES})
    found = Pairs(store, "block1", "cosine", 0.97, find_pairs(store, "block1", 0.97))
    assert found.fields == ["rank", "score", "group", "path", "other_path"]
    assert [list(map(record.get, found.fields)) for record in found.records()] == [
        [1, 0.9950372, 1, "0.jpg", "2.jpg"],
        [2, 0.981665, 1, "2.jpg", "5.jpg"],
        [3, 0.9805807, 2, "1.jpg", "4.jpg"],
    ]
    groups = list(found.groups())
    assert [group.rows.tolist() for group in groups] == [[0, 2, 5], [1, 4]]
    np.testing.assert_allclose(groups[0].scores, [0.9950372, 0.9950372, 0.981665], rtol=1e-6)
    assert found.summary()["complete"] is True


def test_no_pairs(make_store) -> None:
    store = make_store({"block1": VALUES[:2]})
    found = Pairs(store, "block1", "cosine", 0.97, find_pairs(store, "block1", 0.97))
    assert (list(found.records()), list(found.groups())) == ([], [])
