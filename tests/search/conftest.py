"""Small stores with vectors that a test chooses."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densefeat.store.reader import Store, open_store
from densefeat.store.writer import EmbeddingWriter, embedding_schema

MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Features by column, float32 ``(rows, …)``, to an opened store; keys are ``0.jpg``, ``1.jpg``, … unless given."""

    def make(
        features: Mapping[str, np.ndarray],
        keys: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        places: Sequence[tuple[int, int]] | None = None,
        dtype: str = "float32",
        **provenance: Any,
    ) -> Store:
        rows = len(next(iter(features.values())))
        shapes = {name: values.shape[1:] for name, values in features.items()}
        schema = embedding_schema(shapes, provenance, dtype, labels is not None, places is not None)
        columns: dict[str, Sequence[Any]] = {"path": keys or [f"{i}.jpg" for i in range(rows)]}
        columns |= {"label": labels} if labels is not None else {}
        columns |= {"width": [1] * rows, "height": [1] * rows}
        columns |= {"x": [x for x, _ in places], "y": [y for _, y in places]} if places is not None else {}
        path = tmp_path / "store.parquet"
        with EmbeddingWriter(path, schema) as writer:
            for i in range(0, rows, 1000):
                some = slice(i, i + 1000)
                writer.append(
                    {name: values[some] for name, values in columns.items()}, {n: v[some] for n, v in features.items()}
                )
        return open_store(path)

    return make


@pytest.fixture
def clustered() -> np.ndarray:
    """float32 ``(2000, 24)``, not negative, as embeddings are: 100 clusters of twenty."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((100, 24))
    return np.maximum(np.repeat(centres, 20, 0) + 0.2 * generator.standard_normal((2000, 24)), 0).astype(np.float32)
