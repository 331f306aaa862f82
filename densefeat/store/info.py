"""A summary of a store, made without reading its vectors."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from densefeat.store.layout import Layout
from densefeat.store.manifest import list_finished_parts
from densefeat.store.reader import open_store, row_bytes

_MAX_FAILURES = 5  # that are listed


def describe_store(path: str | Path) -> dict[str, Any]:
    """Return rows, failures, vectors, sizes in bytes, and provenance of a store, finished or not, as JSON types.

    ``done`` and ``total``: images (or tiles) that the last extraction has processed, of how many; null where not known.
    ``skipped``: tiles without enough content. ``removed``: images with rows that the last update's input did not have.
    Raises as :func:`densefeat.open_store` does.
    """
    store = open_store(path)
    manifest, failures = store.manifest, store.failures
    done, total = store.progress
    return {
        "path": str(path),
        "kind": "folder" if manifest else "file",
        "complete": store.complete,
        "done": done,
        "total": total,
        "rows": len(store),
        "parts": len(store.parts),
        "failures": {
            "count": len(failures),
            "by_stage": dict(Counter(failure.stage for failure in failures).most_common()),
            "first": [asdict(failure) for failure in failures[:_MAX_FAILURES]],
        },
        "skipped": sum(part.skipped for part in list_finished_parts(Layout(store.path), manifest)) if manifest else 0,
        "removed": manifest.removed if manifest else 0,
        "columns": [name for name in store.schema.names if name not in store.shapes],
        "vectors": {
            name: {
                "shape": list(shape),
                "dtype": store.schema.field(name).type.value_type.to_pandas_dtype().__name__,
                "memory_bytes": len(store) * row_bytes(store.schema, [name]),
            }
            for name, shape in store.shapes.items()
        },
        "disk_bytes": sum(file.stat().st_size for file in store.parts),
        "memory_bytes": len(store) * row_bytes(store.schema, list(store.shapes)),
        "provenance": store.provenance,
    }
