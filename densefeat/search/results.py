"""What was found, as people read it: which images, how near."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from densefeat.search.exact import Duplicates
from densefeat.store import Store


@dataclass(frozen=True)
class Entry:
    """A row of the store, or a query: ``path`` is a key or, of a query image, its file. ``x``, ``y``: of a tile."""

    path: str
    label: str | None = None
    x: int | None = None
    y: int | None = None

    @property
    def name(self) -> str:
        return self.path if self.x is None else f"{self.path}:{self.x},{self.y}"


def entries(store: Store, rows: np.ndarray) -> dict[int, Entry]:
    """By row number, each once; the columns are read whole, but for the vectors."""
    wanted = np.unique(rows[rows >= 0])
    columns = {name: store.column(name).take(wanted).to_pylist() for name in place_fields(store)}
    return {int(row): Entry(**{name: values[i] for name, values in columns.items()}) for i, row in enumerate(wanted)}


def place_fields(store: Store) -> list[str]:
    """Of ``path``, ``label``, ``x`` and ``y`` those that the store has."""
    return [name for name in ("path", "label", "x", "y") if name in store.schema.names]


@dataclass(frozen=True)
class Query:
    """``entry``: what was searched for; ``row``: its number if it is in the store, else None."""

    entry: Entry
    row: int | None = None


@dataclass(frozen=True)
class Neighbours:
    """For each query the nearest rows ``(Q, k)``, -1 where there are fewer, and their scores."""

    store: Store
    column: str
    metric: str
    queries: tuple[Query, ...]
    rows: np.ndarray
    scores: np.ndarray

    @cached_property
    def entries(self) -> dict[int, Entry]:
        return entries(self.store, self.rows)

    @property
    def fields(self) -> list[str]:
        """Of the records: ``query`` where there are several."""
        return [*(["query"] if len(self.queries) > 1 else []), "rank", "score", *place_fields(self.store)]

    def records(self) -> Iterator[dict[str, Any]]:
        """One for each neighbour, query by query, nearest first."""
        for number in range(len(self.queries)):
            for rank, score, entry in self.of_query(number):
                yield {"query": self.queries[number].entry.name, "rank": rank, "score": score, **vars(entry)}

    def of_query(self, number: int) -> Iterator[tuple[int, float, Entry]]:
        """(rank from 1, score, entry)."""
        for rank, (row, score) in enumerate(zip(self.rows[number], self.scores[number], strict=True), 1):
            if row >= 0:
                yield rank, _readable(score), self.entries[int(row)]

    def summary(self) -> dict[str, Any]:
        names = [query.entry.name for query in self.queries]
        return {"query": names[0] if len(names) == 1 else names, "column": self.column, "metric": self.metric}


@dataclass(frozen=True)
class Group:
    """Rows that pairs join, directly or through others, in their order; ``best``: each one's score in its best pair."""

    rows: np.ndarray
    best: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Near duplicates of a store."""

    store: Store
    column: str
    metric: str
    threshold: float
    pairs: Duplicates

    @cached_property
    def entries(self) -> dict[int, Entry]:
        return entries(self.store, np.concatenate([self.pairs.first, self.pairs.second]))

    @cached_property
    def numbers(self) -> np.ndarray:
        """The group of each pair, from 1; the group with the best pair is the first."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        rows, places = np.unique(np.concatenate([self.pairs.first, self.pairs.second]), return_inverse=True)
        first, second = places.reshape(2, -1)
        graph = coo_array((np.ones(len(first), bool), (first, second)), (len(rows), len(rows)))
        component = connected_components(graph, directed=False)[1][first]
        _, where, inverse = np.unique(component, return_index=True, return_inverse=True)
        return 1 + np.argsort(np.argsort(where))[inverse]

    def groups(self) -> Iterator[Group]:
        """In the order of their numbers."""
        order = np.argsort(self.numbers, kind="stable")
        ends = np.flatnonzero(np.diff(self.numbers[order], append=0)) + 1
        for pairs in np.split(order, ends[:-1]) if len(order) else []:  # nearest first within each
            both = np.stack([self.pairs.first[pairs], self.pairs.second[pairs]], 1).reshape(-1)
            rows, earliest = np.unique(both, return_index=True)
            yield Group(rows, self.pairs.scores[pairs][earliest // 2])

    @property
    def fields(self) -> list[str]:
        places = place_fields(self.store)
        return ["rank", "score", "group", *places, *(f"other_{name}" for name in places)]

    def records(self) -> Iterator[dict[str, Any]]:
        """One for each pair, nearest first."""
        found = self.pairs
        pairs = zip(found.first.tolist(), found.second.tolist(), found.scores, self.numbers.tolist(), strict=True)
        for rank, (first, second, score, group) in enumerate(pairs, 1):
            other = {f"other_{name}": value for name, value in vars(self.entries[second]).items()}
            yield {"rank": rank, "score": _readable(score), "group": group, **vars(self.entries[first]), **other}

    def summary(self) -> dict[str, Any]:
        return {
            "query": None,
            "column": self.column,
            "metric": self.metric,
            "threshold": self.threshold,
            "complete": self.pairs.complete,
        }


def _readable(score: np.floating) -> float:
    """A float32 in the digits that it has."""
    return float(f"{score:.7g}")
