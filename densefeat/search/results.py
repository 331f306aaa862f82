"""The result of a search as people read it: which images, how near."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from densefeat.search.exact import RowPairs
from densefeat.store import ImageEntry, Store, list_entry_columns, read_entries


@dataclass(frozen=True)
class Query:
    """An image to find neighbours of. ``row``: its number in the store; None for an image file."""

    entry: ImageEntry
    row: int | None = None


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of each query ``(Q, k)``, -1 where there are fewer, and their scores ``(Q, k)``."""

    store: Store
    column: str
    metric: str
    queries: tuple[Query, ...]
    rows: np.ndarray
    scores: np.ndarray

    @cached_property
    def entries(self) -> dict[int, ImageEntry]:
        return read_entries(self.store, self.rows)

    @property
    def fields(self) -> list[str]:
        """The names of the records' fields; ``query`` only where there are several."""
        return [*(["query"] if len(self.queries) > 1 else []), "rank", "score", *list_entry_columns(self.store)]

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a record for each neighbour, query by query, nearest first."""
        for number in range(len(self.queries)):
            for rank, score, entry in self.list_neighbours(number):
                yield {"query": self.queries[number].entry.name, "rank": rank, "score": score, **vars(entry)}

    def list_neighbours(self, number: int) -> Iterator[tuple[int, float, ImageEntry]]:
        """Yield (rank from 1, score, entry) for a query by its number."""
        for rank, (row, score) in enumerate(zip(self.rows[number], self.scores[number], strict=True), 1):
            if row >= 0:
                yield rank, _round_score(score), self.entries[int(row)]

    def summary(self) -> dict[str, Any]:
        names = [query.entry.name for query in self.queries]
        return {"query": names[0] if len(names) == 1 else names, "column": self.column, "metric": self.metric}


@dataclass(frozen=True)
class Group:
    """The rows that pairs connect, directly or through others, in ascending order; ``scores``: of each row's best pair."""

    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """The near duplicates of a store, and the groups that they form."""

    store: Store
    column: str
    metric: str
    threshold: float
    pairs: RowPairs

    @cached_property
    def entries(self) -> dict[int, ImageEntry]:
        return read_entries(self.store, np.concatenate([self.pairs.first, self.pairs.second]))

    @cached_property
    def group_numbers(self) -> np.ndarray:
        """The group of each pair, from 1; group 1 has the best pair."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        rows, places = np.unique(np.concatenate([self.pairs.first, self.pairs.second]), return_inverse=True)
        first, second = places.reshape(2, -1)
        graph = coo_array((np.ones(len(first), bool), (first, second)), (len(rows), len(rows)))
        component = connected_components(graph, directed=False)[1][first]
        _, where, inverse = np.unique(component, return_index=True, return_inverse=True)
        return 1 + np.argsort(np.argsort(where))[inverse]

    @property
    def group_count(self) -> int:
        return int(self.group_numbers.max(initial=0))

    def groups(self) -> Iterator[Group]:
        """Yield the groups in the order of their numbers."""
        order = np.argsort(self.group_numbers, kind="stable")
        ends = np.flatnonzero(np.diff(self.group_numbers[order], append=0)) + 1
        for pairs in np.split(order, ends[:-1]) if len(order) else []:  # nearest first within each
            both = np.stack([self.pairs.first[pairs], self.pairs.second[pairs]], 1).reshape(-1)
            rows, earliest = np.unique(both, return_index=True)
            yield Group(rows, self.pairs.scores[pairs][earliest // 2])

    @property
    def fields(self) -> list[str]:
        names = list_entry_columns(self.store)
        return ["rank", "score", "group", *names, *(f"other_{name}" for name in names)]

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a record for each pair, nearest first."""
        columns = (self.pairs.first.tolist(), self.pairs.second.tolist(), self.pairs.scores, self.group_numbers.tolist())
        for rank, (first, second, score, group) in enumerate(zip(*columns, strict=True), 1):
            other = {f"other_{name}": value for name, value in vars(self.entries[second]).items()}
            yield {"rank": rank, "score": _round_score(score), "group": group, **vars(self.entries[first]), **other}

    def summary(self) -> dict[str, Any]:
        return {
            "query": None,
            "column": self.column,
            "metric": self.metric,
            "threshold": self.threshold,
            "complete": self.pairs.complete,
        }


def _round_score(score: np.floating) -> float:
    """Return a float32 with the decimal digits that it can hold."""
    return float(f"{score:.7g}")
