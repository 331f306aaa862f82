"""The data of a probe: labelled rows of stores, their parts, and their feature columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.images import complete_record
from densefeat.labels import (
    PARTS,
    TEST,
    TRAIN,
    VAL,
    LabelFile,
    LabelledRows,
    LabelledTable,
    Targets,
    absent_classes,
    count_and_name,
    hold_out_validation,
    load_labels,
    lone_classes,
    split_rows,
)
from densefeat.store import Store

_READ_BYTES = 2**27  # read from a column at a time, beside the array that is filled
_PIECE_BYTES = 2**28  # of features scored at a time
_SAME_IN_BOTH = ("model", "preprocessing", "decoder", "tap")  # provenance that a test store must share, beside the weights
_FEW = 30  # validation or test rows


@dataclass(frozen=True)
class ProbeData:
    """The labelled rows of a store, or of a store and another one of test rows.

    ``parts``: int8 ``(n,)`` as in :mod:`densefeat.labels.splits`, of the labelled rows; ``notes``: what people should know
    about stores and parts, beside ``labelled.report``.
    """

    stores: Sequence[Store]
    columns: "FeatureColumns"
    labelled: LabelledRows
    parts: np.ndarray
    notes: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        """Count the rows of each part."""
        return _count_parts(self.parts)


def _count_parts(parts: np.ndarray) -> dict[str, int]:
    return {name: int(np.count_nonzero(parts == part)) for part, name in enumerate(PARTS)}


def load_data(
    stores: Sequence[Store],
    labels: str | Path | None = None,
    label_column: str | None = None,
    task: str = "auto",
    split_column: str | None = None,
    group_column: str | None = None,
    seed: int = 0,
) -> ProbeData:
    """Load labels, assign parts, and open the feature columns. For the arguments see :func:`densefeat.probing.job.probe`.

    Raises UsageError for labels, splits or stores that a probe cannot use.
    """
    if split_column is not None and len(stores) > 1:
        raise UsageError("--split-column names the test rows, and so does --test: leave out one of them")
    columns, notes = _open_columns(stores)
    _check_no_overlap(stores)
    file = None if labels is None else LabelFile(Path(labels))
    labelled = load_labels(stores, file, label_column, task, split_column, group_column)
    labelled, parts = assign_parts(labelled, stores, seed)
    notes += [*_note_split_folders(labelled), *_note_leaks(labelled, parts), *_note_few_rows(parts)]
    return ProbeData(stores, columns, labelled, parts, tuple(notes))


def _check_no_overlap(stores: Sequence[Store]) -> None:
    """Raise UsageError if test images are also among the images to learn from."""
    places = [store.provenance.get("images") for store in stores]
    if len(stores) < 2 or places[0] is None or places[0] != places[1]:
        return
    both = np.intersect1d(stores[0].keys.astype(str), stores[1].keys.astype(str))
    if len(both):
        raise UsageError(
            f"{len(both):,} images of {stores[1].path} are also in {stores[0].path}, {str(both[0])!r} first: test on other"
            " images, or give one store with --split-column"
        )


def assign_parts(
    labelled: LabelledRows, stores: Sequence[LabelledTable], seed: int
) -> tuple[LabelledRows, np.ndarray]:  # fmt: skip
    """Assign a part to each labelled row, int8 ``(n,)``: by the test store, a column or folders of splits, else drawn.

    Validation rows are taken from the training rows if there are none. The result's report says what the parts leave out.
    Raises UsageError for parts that a probe cannot use.
    """
    if len(stores) > 1:
        parts = _assign_by_store(labelled, stores)
        labelled = replace(labelled, parts=None, split_folders=False)
    else:
        labelled = _use_split_folders(labelled)
        parts = split_rows(labelled.targets, seed, labelled.groups) if labelled.parts is None else labelled.parts
    if (parts == TRAIN).any() and not (parts == VAL).any():
        parts = hold_out_validation(labelled.targets, parts, seed, labelled.groups)
    _check_parts(labelled.targets, _count_parts(parts))
    return _report_classes(labelled, parts), parts


def _assign_by_store(labelled: LabelledRows, stores: Sequence[LabelledTable]) -> np.ndarray:
    """Take rows of the second store for testing. Raises UsageError where the first one has folders of several splits."""
    first = labelled.rows < len(stores[0])
    if labelled.split_folders and labelled.parts is not None and len(np.unique(labelled.parts[first])) > 1:
        raise UsageError(f"{stores[0].path} holds folders of splits, and --test names the test rows, too: leave out --test")
    return np.where(first, TRAIN, TEST).astype(np.int8)


def _use_split_folders(labelled: LabelledRows) -> LabelledRows:
    """Return the rows with parts to use: none for a single folder of a split; of two splits, the second is for testing."""
    parts = labelled.parts
    if not labelled.split_folders or parts is None:
        return labelled
    if len(np.unique(parts)) == 1:
        return replace(labelled, parts=None, split_folders=False)
    return labelled if (parts == TEST).any() else replace(labelled, parts=np.where(parts == VAL, TEST, parts))


def _note_split_folders(labelled: LabelledRows) -> list[str]:
    if not labelled.split_folders or labelled.parts is None:
        return []
    names = sorted({path.partition("/")[0] for path in labelled.paths})
    tested = sorted({path.partition("/")[0] for path, part in zip(labelled.paths, labelled.parts, strict=True) if part == TEST})
    return [f"the folders {', '.join(names)} are splits: figures are of {', '.join(tested)}"]


def _report_classes(labelled: LabelledRows, parts: np.ndarray) -> LabelledRows:
    """Add to the report which classes the split leaves out of training or, where it was drawn, has in training alone."""
    targets = labelled.targets
    report: dict[str, Any] = {"classes": len(targets.classes)}
    report["untrained_classes"] = count_and_name(absent_classes(targets.take(parts != TEST)))
    if labelled.parts is None:
        report["lone_classes"] = count_and_name(lone_classes(targets, labelled.groups, parts))
    return replace(labelled, report=labelled.report | report)


def _note_leaks(labelled: LabelledRows, parts: np.ndarray) -> list[str]:
    members = np.unique(np.stack([labelled.groups, parts.astype(np.int64)], 1), axis=0)[:, 0]
    leaks = int(np.count_nonzero(np.bincount(members) > 1))
    return [f"{leaks:,} images (or groups) have rows in several parts: figures will be too good"] if leaks else []


def _note_few_rows(parts: np.ndarray) -> list[str]:
    counts = {name: int(np.count_nonzero(parts == part)) for name, part in (("validation", VAL), ("test", TEST))}
    few = " and ".join(f"{count} {name}" for name, count in counts.items() if count < _FEW)
    return [f"only {few} rows: figures and choices are rough"] if few else []


def _check_parts(targets: Targets, sizes: dict[str, int]) -> None:
    """Raise UsageError if a part has no rows, or there are fewer training rows than classes."""
    for name, size in sizes.items():
        if not size:
            counts = ", ".join(f"{count} {part}" for part, count in sizes.items())
            raise UsageError(f"no {name} rows with a label ({counts}): give more labels, or another split")
    if sizes["train"] < len(targets.classes):
        raise UsageError(
            f"{sizes['train']} training rows for {len(targets.classes)} classes: give more rows, or fewer classes"
            " (if the labels are numbers to predict: --task regression)"
        )


@dataclass(frozen=True)
class FeatureColumns:
    """The feature columns of stores whose rows follow one another. ``widths``: features of each column that has vectors."""

    stores: tuple[Store, ...]
    widths: dict[str, int]

    def width(self, names: Sequence[str]) -> int:
        """Count the features of some columns together."""
        return sum(self.widths[name] for name in names)

    def read(self, names: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """Read columns side by side, float32 ``(len(rows), width)``, C-contiguous; ``rows``: ascending positions.

        No second copy of the result is made on the way. Raises UsageError for a row with NaN or infinite features.
        """
        out = np.empty((len(rows), self.width(names)), np.float32)
        for store, local, before in self._rows_by_store(rows):
            at = 0
            for name in names:
                block = out[before : before + len(local), at : at + self.widths[name]]
                _fill(block, store, name, local)
                at += self.widths[name]
        return out

    def pieces(self, names: Sequence[str], rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield what :meth:`read` returns, some rows at a time."""
        step = max(1, _PIECE_BYTES // (4 * self.width(names)))
        for start in range(0, len(rows), step):
            yield self.read(names, rows[start : start + step])

    def _rows_by_store(self, rows: np.ndarray) -> Iterator[tuple[Store, np.ndarray, int]]:
        """Yield each store, the positions in it of the requested rows, and how many of them came before."""
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


def _open_columns(stores: Sequence[Store]) -> tuple[FeatureColumns, list[str]]:
    """Find the columns of vectors, and say in notes what is left out.

    Raises UsageError if there is none, or if the rows of the second store were made in another way than those of the first.
    """
    first, notes = stores[0], []
    widths = {name: shape[0] for name, shape in first.shapes.items() if len(shape) == 1}
    maps = [name for name in first.shapes if name not in widths]
    if not widths:
        if maps:
            raise UsageError(f"{first.path} has only maps ({', '.join(maps)}): extract with --pool avg, or avg,none")
        raise UsageError(f"{first.path} has no vectors to learn from: give a finished store of densefeat extract")
    if maps:
        notes.append(f"maps are left out, only pooled features are learnt from: {', '.join(maps)}")
    notes += [f"{store.path} is not finished: {len(store):,} rows are there" for store in stores if not store.complete]
    for other in stores[1:]:
        _check_same_features(first, other, widths)
    return FeatureColumns(tuple(stores), widths), notes


def _check_same_features(first: Store, other: Store, widths: dict[str, int]) -> None:
    for name, width in widths.items():
        if other.shapes.get(name) != (width,):
            shape = other.shapes.get(name, "none")
            raise UsageError(f"{other.path}: {name} is {shape}, in {first.path} it is {(width,)}: extract both in the same way")
    one, two = (_feature_settings(store) for store in (first, other))
    for name in one:
        if one[name] != two[name]:
            difference = f"{name} {_shorten(two[name])}, {first.path} with {_shorten(one[name])}"
            raise UsageError(f"{other.path} was made with {difference}: extract both in the same way")


def _feature_settings(store: Store) -> dict[str, object]:
    """Collect the provenance that determines features."""
    weights = store.provenance.get("weights")
    sha256 = weights.get("sha256") if isinstance(weights, dict) else weights
    facts = {name: store.provenance.get(name) for name in _SAME_IN_BOTH} | {"weights": sha256}
    if isinstance(facts["preprocessing"], dict):
        facts["preprocessing"] = complete_record(facts["preprocessing"])
    return facts


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:80] + "…"
