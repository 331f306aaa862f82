"""The images of an input as a table of labels, before anything is computed from them."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from densefeat.images import PATH, RandomAccess, Source, printable_keys
from densefeat.labels.label_file import find_repeats
from densefeat.labels.labelled_rows import LABEL


@dataclass(frozen=True)
class ListedImages:
    """The paths and labels that a store of these images will have."""

    path: str
    columns: pa.Table = field(repr=False)
    provenance: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    failures: tuple[()] = ()

    @classmethod
    def from_source(cls, source: Source, images: str, options: dict[str, Any]) -> "ListedImages | None":
        """List a source, opened as ``images`` with ``options``; None for a stream, whose images are not known before.

        Raises UsageError for an image with two labels.
        """
        if not isinstance(source, RandomAccess):
            return None
        columns = {PATH: printable_keys(source.keys())}
        if source.labelled:
            columns[LABEL] = source.label_values()
            find_repeats(columns[PATH], columns[LABEL], repr(images), options.get("label_column") or LABEL, labels=True)
        return cls(images, pa.table(columns), {"images": images, "input_options": options})

    @property
    def schema(self) -> pa.Schema:
        return self.columns.schema

    def column(self, name: str) -> pa.ChunkedArray:
        return self.columns.column(name)

    def __len__(self) -> int:
        return len(self.columns)
