"""The labelled rows of stores, in parts that serve."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.labels import (
    PARTS,
    TEST,
    TRAIN,
    VAL,
    LabelFile,
    Labelled,
    Targets,
    absent_classes,
    few,
    gather,
    hold_out_val,
    lone_classes,
    split,
)
from densefeat.probe.columns import Columns, columns_of
from densefeat.store import Store

_FEW = 30  # rows


@dataclass(frozen=True)
class Prepared:
    """``stores``: one, or another of test rows, too; ``parts``: int8 ``(n,)`` as in :mod:`densefeat.labels.splits`, of the
    labelled rows; ``notes``: what people should know of all this, beside ``labelled.report``.
    """

    stores: Sequence[Store]
    columns: Columns
    labelled: Labelled
    parts: np.ndarray
    notes: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        """Rows by part."""
        return {name: int(np.count_nonzero(self.parts == part)) for part, name in enumerate(PARTS)}


def prepare(
    stores: Sequence[Store],
    labels: str | Path | None = None,
    label_column: str | None = None,
    task: str = "auto",
    split_column: str | None = None,
    group_column: str | None = None,
    seed: int = 0,
) -> Prepared:
    """Arguments as of :func:`densefeat.probe.job.probe`. Raises UsageError for labels, splits or stores that do not serve."""
    if split_column is not None and len(stores) > 1:
        raise UsageError("--split-column names the test rows, and --test gives others: give one of them")
    columns, notes = columns_of(stores)
    _check_overlap(stores)
    file = None if labels is None else LabelFile(Path(labels))
    labelled = gather(stores, file, label_column, task, split_column, group_column)
    parts = _parts_of(labelled, stores, seed)
    labelled = _reported(labelled, parts, judged=labelled.parts is None)
    found = Prepared(stores, columns, labelled, parts, (*notes, *_leaks(labelled, parts), *_scarce(parts)))
    _check_parts(labelled.targets, found.sizes())
    return found


def _scarce(parts: np.ndarray) -> list[str]:
    """What few rows cannot tell."""
    counts = {name: int(np.count_nonzero(parts == part)) for name, part in (("validation", VAL), ("test", TEST))}
    few = " and ".join(f"{count} {name}" for name, count in counts.items() if count < _FEW)
    return [f"only {few} rows: figures and choices are rough"] if few else []


def _parts_of(labelled: Labelled, stores: Sequence[Store], seed: int) -> np.ndarray:
    """int8 ``(n,)``: as the labels tell, by the test store, or drawn."""
    if len(stores) > 1:
        parts = np.where(labelled.rows < len(stores[0]), TRAIN, TEST).astype(np.int8)
    elif labelled.parts is not None:
        parts = labelled.parts
    else:
        return split(labelled.targets, seed, labelled.groups)
    if not (parts == TRAIN).any() or (parts == VAL).any():
        return parts
    return hold_out_val(labelled.targets, parts, seed, labelled.groups)


def _reported(labelled: Labelled, parts: np.ndarray, judged: bool) -> Labelled:
    """With what the split did to the classes. ``judged``: whether the split was ours."""
    targets = labelled.targets
    more: dict[str, Any] = {"classes": len(targets.classes)}
    more["untrained_classes"] = few(absent_classes(targets.take(parts != TEST)))
    if judged:
        more["lone_classes"] = few(lone_classes(targets, labelled.groups, parts))
    return replace(labelled, report=labelled.report | more)


def _check_parts(targets: Targets, sizes: dict[str, int]) -> None:
    """UsageError where a part has no rows, or there is too little to learn from."""
    for name, size in sizes.items():
        if not size:
            told = ", ".join(f"{count} {part}" for part, count in sizes.items())
            raise UsageError(f"no {name} rows with a label ({told}): give more labels, or another split")
    if sizes["train"] < len(targets.classes):
        raise UsageError(
            f"{sizes['train']} training rows for {len(targets.classes)} classes: give more rows, or fewer classes"
            " (numbers to predict, not classes? --task regression)"
        )


def _check_overlap(stores: Sequence[Store]) -> None:
    """UsageError where test rows are among those to learn from."""
    places = [store.provenance.get("images") for store in stores]
    if len(stores) < 2 or places[0] is None or places[0] != places[1]:
        return
    both = np.intersect1d(stores[0].keys.astype(str), stores[1].keys.astype(str))
    if len(both):
        raise UsageError(
            f"{len(both):,} images of {stores[1].path} are in {stores[0].path}, too, {str(both[0])!r} first: give other test"
            " images, or one store with --split-column"
        )


def _leaks(labelled: Labelled, parts: np.ndarray) -> list[str]:
    """What a given split tears apart."""
    members = np.unique(np.stack([labelled.groups, parts.astype(np.int64)], 1), axis=0)[:, 0]
    torn = int(np.count_nonzero(np.bincount(members) > 1))
    return [f"{torn:,} images (or groups) have rows in several parts: figures will be too good"] if torn else []
