"""The labels of stored rows, from a store's own column or a CSV file, and remarks on them for the user."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from densefeat.errors import UsageError
from densefeat.images import join_chunks
from densefeat.labels.label_file import EXAMPLES, LabelFile, strip_blanks
from densefeat.labels.splits import TEST, TRAIN, VAL
from densefeat.labels.targets import TASKS, Targets, absent_classes, encode_labels, infer_task
from densefeat.store import Store

LABEL = "label"
_PART_NAMES = {"train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}


@dataclass(frozen=True)
class LabelledRows:
    """The n rows with a label, of one store or of several stores one after the other.

    ``rows``: int64 ``(n,)``, their positions; ``paths``: n paths; ``groups``: int64 ``(n,)``, rows with the same number stay on
    one side of a split; ``parts``: int8 ``(n,)`` as in :mod:`densefeat.labels.splits`, None unless a column gives them;
    ``report``: the facts that :func:`format_remarks` puts into words, as JSON.
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
    """Load the labels of the stores' rows, from a file (matched by ``path``) or from the stores' own column.

    Args:
        column: The column of labels; None: ``label``.
        split_column: A column of train, val and test.
        group_column: Rows with one value of it stay together, as rows of one path do. Both columns are read from the file
            where it has them, else from the stores.

    Raises:
        UsageError: An unknown task, a missing column, no label for any row, labels that do not fit the task.
    """
    if task not in TASKS:
        raise UsageError(f"task {task!r}: choose one of {', '.join(TASKS)}")
    keys = pa.concat_arrays([join_chunks(store.column("path")).cast(pa.large_string()) for store in stores])
    column = column or LABEL
    texts = read_text_column(stores, file, column, keys, labels=True)
    rows = np.flatnonzero([text is not None for text in texts])
    unlabelled = [row for row, text in enumerate(texts) if text is None]
    report: dict[str, Any] = {
        "rows": len(texts),
        "labelled": len(rows),
        "without_label": {"count": len(unlabelled), "first": [keys[row].as_py() for row in unlabelled[:EXAMPLES]]},
    }
    if file is not None:
        report |= {"labels_without_row": file.find_unmatched(keys), "repeated_lines": file.count_repeats()}
    if not len(rows):
        raise UsageError(_describe_missing_labels(stores, file, column, keys))
    paths = keys.take(pa.array(rows)).to_pylist()
    known = [text for text in texts if text is not None]
    inferred, reason = infer_task(known) if task == "auto" else (task, "as requested")
    targets = encode_labels(known, inferred, paths)  # type: ignore[arg-type]
    parts = None
    if split_column is not None:
        values = read_text_column(stores, file, split_column, keys)
        parts = _parse_parts([values[row] for row in rows], paths, split_column)
    group_names = None
    if group_column is not None:
        values = read_text_column(stores, file, group_column, keys)
        group_names = [values[row] for row in rows]
    ends = np.cumsum([len(store) for store in stores])
    images = list(zip(np.searchsorted(ends, rows, "right").tolist(), paths, strict=True))  # one path in two stores: two images
    groups = _number_groups(images, group_names)
    return LabelledRows(targets, rows, paths, groups, parts, report | {"task": inferred, "task_from": reason})


def read_text_column(
    stores: Sequence[Store], file: LabelFile | None, name: str, keys: pa.Array, labels: bool = False
) -> list[str | None]:
    """Read a column as text, from the file if it has the column, else from the stores; one value for each of ``keys``.

    ``labels``: this is the column of labels; if there is a file, it must be there.
    """
    if file is not None and (labels or name in file.names):
        return file.column(name, keys)
    for store in stores:
        if name not in store.schema.names or name in store.shapes:
            plain = [column for column in store.schema.names if column not in store.shapes]
            advice = ": give --labels FILE.csv with the columns path,label, or extract with --labels folder" if labels else ""
            raise UsageError(f"{store.path} has no column {name!r}, it has {', '.join(plain) or 'no rows yet'}{advice}")
    columns = [strip_blanks(join_chunks(store.column(name)).cast(pa.large_string())) for store in stores]
    return pa.concat_arrays(columns).to_pylist()


def _describe_missing_labels(stores: Sequence[Store], file: LabelFile | None, column: str, keys: pa.Array) -> str:
    if not len(keys):
        return f"{stores[0].path} has no rows to learn from"
    if file is None:
        return f"{stores[0].path}: its column {column!r} is empty; give --labels FILE.csv with the columns path,label"
    example = file.keys[0].as_py() if len(file.keys) else "nothing"
    return (
        f"labels {str(file.path)!r}: no path in it is a row of {stores[0].path}; "
        f"the file has {example!r}, the rows have {keys[0].as_py()!r}"
    )


def _number_groups(images: Sequence[tuple[int, str]], names: Sequence[str | None] | None) -> np.ndarray:
    """Number the groups of rows that must stay together, int64 ``(n,)``.

    Rows of one image (store and path) are one group; so are rows of one group name. An image with several names joins their
    groups.
    """
    numbers: dict[tuple[int, str], int] = {}
    members = np.array([numbers.setdefault(image, len(numbers)) for image in images], np.int64)
    if names is None:
        return members
    from scipy.sparse import coo_array  # takes half a second, and few probes have groups
    from scipy.sparse.csgraph import connected_components

    name_numbers: dict[str, int] = {}
    pairs = [
        (int(member), name_numbers.setdefault(name, len(name_numbers)))
        for member, name in zip(members, names, strict=True)
        if name is not None
    ]
    size = len(numbers) + len(name_numbers)
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs), bool), (left, right + len(numbers))), shape=(size, size))
    return connected_components(graph, directed=False)[1][members].astype(np.int64)


def _parse_parts(values: Sequence[str | None], paths: Sequence[str], column: str) -> np.ndarray:
    """Return the part of each row, int8 ``(n,)``. Raises UsageError where a value is missing or names no part."""
    for value, path in zip(values, paths, strict=True):
        if value is None or value.lower() not in _PART_NAMES:
            raise UsageError(f"{column!r} of {path!r} is {value!r}: it must be train, val or test")
    return np.array([_PART_NAMES[value.lower()] for value in values if value is not None], np.int8)


def lone_classes(targets: Targets, groups: np.ndarray, parts: np.ndarray) -> list[str]:
    """List the classes that have a single image (or group), which is in the training part.

    ``parts``: int8 ``(n,)`` as in :mod:`densefeat.labels.splits`.
    """
    if targets.task == "regression":
        return []
    if targets.task == "single":
        members = np.unique(np.stack([targets.values, groups], 1), axis=0)[:, 0]
        counts = np.bincount(members, minlength=len(targets.classes))
    else:
        counts = np.array([len(np.unique(groups[mask])) for mask in targets.values.T])
    absent = set(absent_classes(targets.take(parts != TRAIN)))
    return [name for name, count in zip(targets.classes, counts, strict=True) if count == 1 and name in absent]


def count_and_name(names: Iterable[str]) -> dict[str, Any]:
    """Count names, and keep the first few as examples."""
    listed = list(names)
    return {"count": len(listed), "first": listed[:EXAMPLES]}


def format_remarks(report: dict[str, Any]) -> list[str]:
    """Put what a person should know about the labels into words, a sentence each."""
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
        entry = report.get(key) or {"count": 0}
        if entry["count"]:
            more = ", …" if entry["count"] > len(entry["first"]) else ""
            lines.append(f"{entry['count']:,} {text}: {', '.join(entry['first'])}{more}")
    if report.get("repeated_lines"):
        lines.append(f"{report['repeated_lines']:,} lines of the labels repeat others")
    return lines
