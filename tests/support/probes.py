"""Small stores whose features predict their labels, later blocks better."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.labels.targets import Targets
from densefeat.store.writer import EmbeddingWriter, make_embedding_schema

WIDTHS = {"block1": 4, "block2": 6, "block3": 8}
NAMES = ("ant", "bee", "cow", "dog", "eel", "fox")


def single_targets(values: Sequence[int] | np.ndarray, classes: int | None = None) -> Targets:
    values = np.asarray(values, np.int64)
    count = int(values.max()) + 1 if classes is None else classes
    return Targets("single", tuple(f"class {i}" for i in range(count)), values)


def draw_codes(rows: int, classes: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, rows)


def make_features(codes: np.ndarray, seed: int = 0, widths: dict[str, int] = WIDTHS) -> dict[str, np.ndarray]:
    """Centres of classes are the same for every seed; later blocks have less noise."""
    centres, noise = np.random.default_rng(99), np.random.default_rng(seed)
    features = {}
    for number, (name, width) in enumerate(widths.items(), 1):
        centre = centres.standard_normal((20, width))
        features[name] = (centre[codes] + 3 / number * noise.standard_normal((len(codes), width))).astype(np.float32)
    return features


def write_probe_store(
    path: Path,
    labels: Sequence[str | None] | None,
    features: dict[str, np.ndarray],
    keys: Sequence[str] | None = None,
    places: Sequence[tuple[int, int]] | None = None,
    **provenance: Any,
) -> Path:
    """A single-file store; keys are ``0.jpg``, ``1.jpg``, … unless given."""
    rows = len(next(iter(features.values())))
    shapes = {name: values.shape[1:] for name, values in features.items()}
    schema = make_embedding_schema(shapes, {"model": "made-up"} | provenance, "float32", labels is not None, places is not None)
    columns: dict[str, Any] = {"path": keys or [f"{i}.jpg" for i in range(rows)], "width": [1] * rows, "height": [1] * rows}
    columns |= {} if labels is None else {"label": labels}
    columns |= {} if places is None else {"x": [x for x, _ in places], "y": [y for _, y in places]}
    with EmbeddingWriter(path, schema) as writer:
        writer.append(columns, features)
    return path


def write_class_store(path: Path, rows: int = 240, classes: int = 3, seed: int = 0, **options: Any) -> Path:
    """A single-file store of single-label rows."""
    codes = draw_codes(rows, classes, seed)
    return write_probe_store(path, [NAMES[code] for code in codes], make_features(codes, seed), **options)
