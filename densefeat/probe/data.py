"""Labelled rows of stores, in training, validation and test parts, with their feature columns."""

from collections.abc import Iterator, Sequence
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
    LabelledRows,
    Targets,
    absent_classes,
    count_and_name,
    hold_out_validation,
    load_labels,
    lone_classes,
    split_rows,
)
from densefeat.store import Store

_READ_BYTES = 2**27  # of a column, beside the array that is made
_SCORED_BYTES = 2**28
_COMPARED = ("model", "preprocessing", "decoder", "tap")  # of provenance, beside the weights


@dataclass(frozen=True)
class Columns:
    """The rows of ``stores``, one after the other; ``widths``: features of each column that is no map."""

    stores: tuple[Store, ...]
    widths: dict[str, int]

    def width(self, names: Sequence[str]) -> int:
        return sum(self.widths[name] for name in names)

    def read(self, names: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """float32 ``(len(rows), width)``, C-contiguous, made once; ``rows``: positions, ascending.

        Raises UsageError where a feature is NaN or infinite, with its row.
        """
        out = np.empty((len(rows), self.width(names)), np.float32)
        for store, local, done in self._parts(rows):
            at = 0
            for name in names:
                block = out[done : done + len(local), at : at + self.widths[name]]
                _fill(block, store, name, local)
                at += self.widths[name]
        return out

    def pieces(self, names: Sequence[str], rows: np.ndarray) -> Iterator[np.ndarray]:
        """The same, some rows at a time."""
        step = max(1, _SCORED_BYTES // (4 * self.width(names)))
        for start in range(0, len(rows), step):
            yield self.read(names, rows[start : start + step])

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[Store, np.ndarray, int]]:
        """Stores with the rows of theirs that are wanted, and how many were before."""
        first = 0
        for store in self.stores:
            low, high = np.searchsorted(rows, (first, first + len(store)))
            if high > low:
                yield store, rows[low:high] - first, int(low)
            first += len(store)


def _fill(out: np.ndarray, store: Store, name: str, rows: np.ndarray) -> None:
    step = max(1, _READ_BYTES // (4 * out.shape[1]))
    for start in range(0, len(store), step):
        stop = min(start + step, len(store))
        low, high = np.searchsorted(rows, (start, stop))
        if high == low:
            continue
        out[low:high] = store.read(name, start, stop)[rows[low:high] - start]
        bad = np.flatnonzero(~np.isfinite(out[low:high]).all(1))
        if len(bad):
            row = int(rows[low + bad[0]])
            path = store.read("path", row, row + 1)[0]
            raise UsageError(f"{store.path}: {name} of {path!r} has NaN or infinite features: extract it again")


def open_columns(stores: Sequence[Store]) -> tuple[Columns, list[str]]:
    """The columns that can be learnt from, and notes on what is left out.

    Raises UsageError where there is none, or the second store's rows were made in another way than the first's.
    """
    first, notes = stores[0], []
    widths = {name: shape[0] for name, shape in first.shapes.items() if len(shape) == 1}
    maps = [name for name in first.shapes if name not in widths]
    if not widths:
        if maps:
            raise UsageError(f"{first.path} has maps alone ({', '.join(maps)}): extract with --pool avg, or avg,none")
        raise UsageError(f"{first.path} has no vectors to learn from: is it finished, and of densefeat extract?")
    if maps:
        notes.append(f"maps are left out, only pooled features are learnt from: {', '.join(maps)}")
    notes += [f"{store.path} is not finished: {len(store):,} rows are there" for store in stores if not store.complete]
    for other in stores[1:]:
        _check_same_features(first, other, widths)
    return Columns(tuple(stores), widths), notes


def _check_same_features(first: Store, other: Store, widths: dict[str, int]) -> None:
    for name, width in widths.items():
        if other.shapes.get(name) != (width,):
            there = other.shapes.get(name, "none")
            raise UsageError(f"{other.path}: {name} of {there}, in {first.path} of {width}: extract both in the same way")
    one, two = (_feature_settings(store) for store in (first, other))
    for name in one:
        if one[name] != two[name]:
            told = f"{name} {_short(two[name])}, {first.path} with {_short(one[name])}"
            raise UsageError(f"{other.path} was made with {told}: extract both in the same way")


def _feature_settings(store: Store) -> dict[str, object]:
    made = store.provenance
    weights = made.get("weights")
    return {name: made.get(name) for name in _COMPARED} | {
        "weights": weights.get("sha256") if isinstance(weights, dict) else weights
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:80] + "…"


_FEW = 30  # rows


@dataclass(frozen=True)
class ProbeData:
    """``stores``: one, or another of test rows, too; ``parts``: int8 ``(n,)`` as in :mod:`densefeat.labels.splits`, of the
    labelled rows; ``notes``: what people should know of all this, beside ``labelled.report``.
    """

    stores: Sequence[Store]
    columns: Columns
    labelled: LabelledRows
    parts: np.ndarray
    notes: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        """Rows by part."""
        return {name: int(np.count_nonzero(self.parts == part)) for part, name in enumerate(PARTS)}


def load_data(
    stores: Sequence[Store],
    labels: str | Path | None = None,
    label_column: str | None = None,
    task: str = "auto",
    split_column: str | None = None,
    group_column: str | None = None,
    seed: int = 0,
) -> ProbeData:
    """Arguments as of :func:`densefeat.probe.job.probe`. Raises UsageError for labels, splits or stores that do not serve."""
    if split_column is not None and len(stores) > 1:
        raise UsageError("--split-column names the test rows, and --test gives others: give one of them")
    columns, notes = open_columns(stores)
    _check_overlap(stores)
    file = None if labels is None else LabelFile(Path(labels))
    labelled = load_labels(stores, file, label_column, task, split_column, group_column)
    parts = _assign_parts(labelled, stores, seed)
    labelled = _report_classes(labelled, parts, judged=labelled.parts is None)
    found = ProbeData(stores, columns, labelled, parts, (*notes, *_note_leaks(labelled, parts), *_note_few_rows(parts)))
    _check_parts(labelled.targets, found.sizes())
    return found


def _note_few_rows(parts: np.ndarray) -> list[str]:
    """What few rows cannot tell."""
    counts = {name: int(np.count_nonzero(parts == part)) for name, part in (("validation", VAL), ("test", TEST))}
    few = " and ".join(f"{count} {name}" for name, count in counts.items() if count < _FEW)
    return [f"only {few} rows: figures and choices are rough"] if few else []


def _assign_parts(labelled: LabelledRows, stores: Sequence[Store], seed: int) -> np.ndarray:
    """int8 ``(n,)``: as the labels tell, by the test store, or drawn."""
    if len(stores) > 1:
        parts = np.where(labelled.rows < len(stores[0]), TRAIN, TEST).astype(np.int8)
    elif labelled.parts is not None:
        parts = labelled.parts
    else:
        return split_rows(labelled.targets, seed, labelled.groups)
    if not (parts == TRAIN).any() or (parts == VAL).any():
        return parts
    return hold_out_validation(labelled.targets, parts, seed, labelled.groups)


def _report_classes(labelled: LabelledRows, parts: np.ndarray, judged: bool) -> LabelledRows:
    """With what the split did to the classes. ``judged``: whether the split was ours."""
    targets = labelled.targets
    more: dict[str, Any] = {"classes": len(targets.classes)}
    more["untrained_classes"] = count_and_name(absent_classes(targets.take(parts != TEST)))
    if judged:
        more["lone_classes"] = count_and_name(lone_classes(targets, labelled.groups, parts))
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


def _note_leaks(labelled: LabelledRows, parts: np.ndarray) -> list[str]:
    """What a given split tears apart."""
    members = np.unique(np.stack([labelled.groups, parts.astype(np.int64)], 1), axis=0)[:, 0]
    torn = int(np.count_nonzero(np.bincount(members) > 1))
    return [f"{torn:,} images (or groups) have rows in several parts: figures will be too good"] if torn else []
