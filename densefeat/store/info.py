"""What is in a store, without reading its vectors."""

import json
from collections import Counter
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from densefeat.store.layout import Layout
from densefeat.store.manifest import read_manifest
from densefeat.store.reader import Store, open_store, row_bytes

FAILURES_SHOWN = 5


def describe(path: str | Path) -> dict[str, Any]:
    """Rows, failures, vectors, sizes in bytes, and provenance of a store, also of one that is not finished, as JSON types.

    ``done`` and ``total``: images (or tiles) that the extraction has gone through, of how many; null where not known.
    Raises as :func:`open_store` does.
    """
    store = open_store(path)
    manifest = read_manifest(Layout(store.path)) if store.path.is_dir() else None
    failures = store.failures
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
            "first": [asdict(failure) for failure in islice(failures, FAILURES_SHOWN)],
        },
        "skipped": sum(part.skipped for part in manifest.parts) if manifest else 0,
        "removed": manifest.removed if manifest else 0,
        "columns": [name for name in store.schema.names if name not in store.shapes],
        "vectors": {name: vectors(store, name) for name in store.shapes},
        "disk_bytes": sum(file.stat().st_size for file in store.parts),
        "memory_bytes": len(store) * row_bytes(store.schema, list(store.shapes)),
        "provenance": store.provenance,
    }
