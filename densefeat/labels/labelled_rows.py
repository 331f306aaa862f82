"""The labels of stored rows, and what is odd about them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from densefeat.errors import UsageError
from densefeat.images import one_array
from densefeat.labels.label_file import EXAMPLES, LabelFile, strip_blanks
from densefeat.labels.splits import TRAIN
from densefeat.labels.targets import TASKS, Targets, encode_labels, infer_task
from densefeat.store import Store

LABEL = "label"


@dataclass(frozen=True)
class LabelledRows:
    """The n rows with a label, of one store or of several, one after the other.

    ``rows``: int64 ``(n,)``, their positions; ``paths``: n; ``groups``: int64 ``(n,)``, rows that stay on one side of a split;
    ``parts``: int8 ``(n,)`` as in :mod:`densefeat.labels.splits`, where the labels tell; ``report``: JSON.
    """

    targets: Targets
    rows: np.ndarray
    paths: list[str]
    groups: np.ndarray
    parts: np.ndarray | None
    report: dict[str, Any] = field(default_factory=dict)


def load_labels(
    stores: Sequence[Store],
    file: LabelFile | None = None,
    column: str | None = None,
    task: str = "auto",
    split_column: str | None = None,
    group_column: str | None = None,
) -> LabelledRows:
    """The labels of the stores' rows, from a file (matched by ``path``) or the stores' own column.

    ``column``: other than ``label``. ``split_column``: of train, val and test; ``group_column``: rows of one value stay
    together, as rows of one path do; both of the file, where it has them, or of the stores. Raises UsageError.
    """
    if task not in TASKS:
        raise UsageError(f"task {task!r}: choose one of {', '.join(TASKS)}")
    keys = pa.concat_arrays([one_array(store.column("path")).cast(pa.large_string()) for store in stores])
    texts = read_text_column(stores, file, column or LABEL, keys, needed=True)
    rows = np.flatnonzero([text is not None for text in texts])
    report: dict[str, Any] = {"rows": len(texts), "labelled": len(rows), "without_label": _few_of(texts, keys)}
    if file is not None:
        report |= {"labels_without_row": file.without_row(keys), "repeated_lines": file.repeats()}
    if not len(rows):
        raise UsageError(_explain_no_labels(stores, file, column or LABEL, keys))
    paths = keys.take(pa.array(rows)).to_pylist()
    starts = np.cumsum([len(store) for store in stores])
    places = list(zip(np.searchsorted(starts, rows, "right").tolist(), paths, strict=True))  # of two stores: other images
    known = [text for text in texts if text is not None]
    taken, why = infer_task(known) if task == "auto" else (task, "as asked")
    targets = encode_labels(known, taken, paths)  # type: ignore[arg-type]
    split = None if split_column is None else read_text_column(stores, file, split_column, keys)
    groups = None if group_column is None else read_text_column(stores, file, group_column, keys)
    return LabelledRows(
        targets,
        rows,
        paths,
        _number_groups(places, None if groups is None else [groups[row] for row in rows]),
        None if split is None else _parse_parts([split[row] for row in rows], paths, split_column or ""),
        report | {"task": taken, "task_from": why},
    )


def read_text_column(
    stores: Sequence[Store], file: LabelFile | None, name: str, keys: pa.Array, needed: bool = False
) -> list[str | None]:
    """A column as text: of the file, or of the stores. ``needed``: of the file alone, where there is one."""
    if file is not None and (needed or name in file.names):
        return file.column(name, keys)
    for store in stores:
        if name not in store.schema.names or name in store.shapes:
            plain = [known for known in store.schema.names if known not in store.shapes]
            more = "" if not needed else ": give --labels FILE.csv with columns path,label, or extract with --labels folder"
            raise UsageError(f"{store.path} has no column {name!r}, it has {', '.join(plain) or 'no rows yet'}{more}")
    columns = [strip_blanks(one_array(store.column(name)).cast(pa.large_string())) for store in stores]
    return pa.concat_arrays(columns).to_pylist()


def _few_of(texts: Sequence[str | None], keys: pa.Array) -> dict[str, Any]:
    missing = [row for row, text in enumerate(texts) if text is None]
    return {"count": len(missing), "first": [keys[row].as_py() for row in missing[:EXAMPLES]]}


def _explain_no_labels(stores: Sequence[Store], file: LabelFile | None, column: str, keys: pa.Array) -> str:
    """Why no row has a label."""
    if not len(keys):
        return f"{stores[0].path} has no rows to learn from"
    if file is None:
        return f"{stores[0].path}: its column {column!r} is empty; give --labels FILE.csv with columns path,label"
    there = file.keys[0].as_py() if len(file.keys) else "nothing"
    return f"labels {str(file.path)!r}: none for a row of {stores[0].path}; it has {there!r}, the rows {keys[0].as_py()!r}"


def _number_groups(places: Sequence[tuple[int, str]], groups: Sequence[str | None] | None) -> np.ndarray:
    """int64 ``(n,)``: rows of one place (store and path), and of one group, have one number; in the order of the rows.

    A path that stands in several groups joins them.
    """
    numbers: dict[tuple[int, str], int] = {}
    members = np.array([numbers.setdefault(place, len(numbers)) for place in places], np.int64)
    if groups is None:
        return members
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names: dict[str, int] = {}
    pairs = [(int(m), names.setdefault(g, len(names))) for m, g in zip(members, groups, strict=True) if g is not None]
    size = len(numbers) + len(names)
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs), bool), (left, right + len(numbers))), shape=(size, size))
    return connected_components(graph, directed=False)[1][members].astype(np.int64)


_PART_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}


def _parse_parts(values: Sequence[str | None], paths: Sequence[str], column: str) -> np.ndarray:
    """int8 ``(n,)``. UsageError for a value that is no part, or none at all."""
    for value, path in zip(values, paths, strict=True):
        if value is None or value.lower() not in _PART_NAMES:
            raise UsageError(f"{column!r} of {path!r} is {value!r}: train, val or test")
    return np.array([_PART_NAMES[value.lower()] for value in values if value is not None], np.int8)


def lone_classes(targets: Targets, groups: np.ndarray, parts: np.ndarray) -> list[str]:
    """Classes of one image (or group) that only trains. ``parts``: ``(n,)`` as in :mod:`densefeat.labels.splits`."""
    if targets.task == "regression":
        return []
    if targets.task == "single":
        members = np.unique(np.stack([targets.values, groups], 1), axis=0)[:, 0]
        counts = np.bincount(members, minlength=len(targets.classes))
    else:
        counts = np.array([len(np.unique(groups[mask])) for mask in targets.values.T])
    absent = set(absent_classes(targets.take(parts != TRAIN)))
    return [name for name, count in zip(targets.classes, counts, strict=True) if count == 1 and name in absent]


def absent_classes(targets: Targets) -> list[str]:
    """Classes that none of these rows has."""
    if targets.task == "regression":
        return []
    seen = np.bincount(targets.values, minlength=len(targets.classes)) if targets.task == "single" else targets.values.sum(0)
    return [name for name, count in zip(targets.classes, seen, strict=True) if count == 0]


def format_remarks(report: dict[str, Any]) -> list[str]:
    """What a person should know about the labels, a sentence each."""
    classes = report.get("classes")
    kind = {"single": "single-label", "multi": "multi-label", "regression": "regression"}[report["task"]]
    lines = [
        f"{report['labelled']:,} rows with a label, {kind} ({report['task_from']})"
        + (f", {classes} classes" if classes else "")
    ]
    for key, text in (
        ("without_label", "rows without a label are left out"),
        ("labels_without_row", "labels have no row"),
        ("lone_classes", "classes of one image (or group) are in the training part alone"),
        ("untrained_classes", "classes are in no row of training: their test rows count as mistakes"),
    ):
        found = report.get(key) or {"count": 0}
        if found["count"]:
            more = ", …" if found["count"] > len(found["first"]) else ""
            lines.append(f"{found['count']:,} {text}: {', '.join(found['first'])}{more}")
    if report.get("repeated_lines"):
        lines.append(f"{report['repeated_lines']:,} lines of the labels repeat others")
    return lines


def count_and_name(names: Iterable[str]) -> dict[str, Any]:
    listed = list(names)
    return {"count": len(listed), "first": listed[:EXAMPLES]}
