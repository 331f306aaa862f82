"""Rows of a store as people name them: an image's key, its label, a tile's place."""

from dataclasses import dataclass

import numpy as np

from densefeat.store.reader import Store


@dataclass(frozen=True)
class ImageEntry:
    """An image of a store or, of a search, an image file.

    ``path``: its key, or the file; ``x``, ``y``: of a tile; ``page``: of a file of several.
    """

    path: str
    label: str | None = None
    x: int | None = None
    y: int | None = None
    page: int | None = None

    @property
    def name(self) -> str:
        """The key, and where in the file the image is: ``KEY``, ``KEY:pPAGE``, ``KEY:X,Y``, ``KEY:pPAGE:X,Y``."""
        page = "" if self.page is None else f":p{self.page}"
        return self.path + page + ("" if self.x is None else f":{self.x},{self.y}")


def list_entry_columns(store: Store) -> list[str]:
    """List which of ``path``, ``label``, ``x``, ``y`` and ``page`` the store has."""
    return [name for name in ("path", "label", "x", "y", "page") if name in store.schema.names]


def read_entries(store: Store, rows: np.ndarray | None = None) -> dict[int, ImageEntry]:
    """Read the entries of some rows, by row number, each once; rows of -1 are left out. The columns are read whole.

    ``rows``: integers; None: all rows, in their order.
    """
    rows = np.arange(len(store)) if rows is None else rows
    distinct = np.unique(rows[rows >= 0])
    columns = {name: store.column(name).take(distinct).to_pylist() for name in list_entry_columns(store)}
    return {int(row): ImageEntry(**{name: values[i] for name, values in columns.items()}) for i, row in enumerate(distinct)}
