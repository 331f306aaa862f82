"""Stores of the images that a probe is given, beside its results."""

import os
from pathlib import Path
from typing import Any

from densefeat.base import output_errors
from densefeat.extraction import extract
from densefeat.images import DELIMITERS
from densefeat.labels import LABEL, LabelFile
from densefeat.probe.job import FEATURES, TEST_FEATURES, check_free
from densefeat.store import Layout, is_embeddings


def extract_images(
    images: str | Path, test: str | Path | None, out: Path, label_file: str | Path | None = None, **settings: Any
) -> list[Path]:
    """Where the stores of the images and the test images are, made now as far as they are not there.

    ``test`` may be a store. ``label_file``: what will be needed. ``settings``: of :func:`densefeat.extract`. Raises
    what that does, UsageError where ``out`` holds something else than a probe, OutputError where it cannot be made.
    """
    check_free(out)
    if label_file not in (None, "folder"):
        LabelFile(Path(label_file))  # before what may take hours
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    extract(images, out / FEATURES, **settings)
    if test is None:
        return [out / FEATURES]
    if _is_store(test):
        return [out / FEATURES, Path(test)]
    extract(test, out / TEST_FEATURES, **settings)
    return [out / FEATURES, out / TEST_FEATURES]


def reading_of(images: str | Path, labels: str | Path | None, label_column: str | None) -> dict[str, Any]:
    """How to open the images, with the labels that are theirs."""
    if labels == "folder" or (labels is None and label_column is None and os.path.isdir(images)):
        return {"labels": "folder"}
    if labels is None and label_column is None and str(images).lower().endswith(tuple(DELIMITERS)):
        label_column = LABEL  # of a list it is its own
    return {"label_column": label_column} if labels is None and label_column else {}


def labels_of(labels: str | Path | None, label_column: str | None) -> dict[str, Any]:
    """How to find labels once the images are in stores: a file's, or the stores' own."""
    return {} if labels in (None, "folder") else {"labels": labels, "label_column": label_column}


def _is_store(path: str | Path) -> bool:
    return Layout(Path(path)).manifest.exists() or (os.path.isfile(path) and is_embeddings(Path(path)))
