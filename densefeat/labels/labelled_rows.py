"""The labels of stored rows, from a store's own column or a CSV file, and remarks on them for the user."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from densefeat.errors import UsageError
from densefeat.images import DELIMITERS, SPLIT_NAMES, TEXTS, clean_labels, is_remote, join_chunks
from densefeat.labels.folders import check_classes_are_no_splits, find_label_depth, read_parts
from densefeat.labels.label_file import EXAMPLES, LabelFile
from densefeat.labels.splits import PARTS, TRAIN
from densefeat.labels.targets import TASKS, Targets, absent_classes, describe_missing, encode_labels, infer_task

LABEL = "label"
_LISTS = {*TEXTS, *DELIMITERS}


class LabelledTable(Protocol):
    """A table of images with the columns ``path`` and, where they have labels, ``label``: a store, or a listing."""

    @property
    def path(self) -> Any: ...
    @property
    def provenance(self) -> dict[str, Any]: ...
    @property
    def schema(self) -> pa.Schema: ...
    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...
    @property
    def failures(self) -> Sequence[Any]: ...
    def column(self, name: str) -> pa.ChunkedArray: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class LabelledRows:
    """The n rows with a label, of one store or of several stores one after the other.

    ``rows``: int64 ``(n,)``, their positions; ``paths``: n paths; ``groups``: int64 ``(n,)``, rows with the same number stay on
    one side of a split; ``parts``: int8 ``(n,)`` as in :mod:`densefeat.labels.splits`, None unless they are given;
    ``report``: the facts that :func:`format_remarks` puts into words, as JSON; ``split_folders``: whether folders give
    the parts.
    """

    targets: Targets
    rows: np.ndarray
    paths: list[str]
    groups: np.ndarray
    parts: np.ndarray | None
    report: dict[str, Any] = field(default_factory=dict)
    split_folders: bool = False


def load_labels(
    stores: Sequence[LabelledTable],
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

    Where the stores' own labels are the folders in folders of splits, ``train/cat/1.jpg``, these give the parts.

    Raises:
        UsageError: An unknown task, a missing column, no label for any row, labels that do not fit the task.
    """
    if task not in TASKS:
        raise UsageError(f"task {task!r}: choose one of {', '.join(TASKS)}")
    keys = pa.concat_arrays([join_chunks(store.column("path")).cast(pa.large_string()) for store in stores])
    column = column or LABEL
    if file is not None:
        file = file.align(keys, find_image_folders(stores))
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
    depth = find_label_depth(paths, known) if file is None else None
    if depth == 0:
        check_classes_are_no_splits(paths, str(stores[0].path))
    inferred, reason = infer_task(known, depth is not None) if task == "auto" else (task, "as requested")
    targets = encode_labels(known, inferred, paths)  # type: ignore[arg-type]
    parts = read_parts(paths) if depth == 1 else None
    split_folders = parts is not None and split_column is None
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
    report |= {"task": inferred, "task_from": reason}
    if unread := _list_unread_classes(stores, file, column, depth, targets):
        report["unread_classes"] = count_and_name(unread)
    if doubts := describe_missing(targets.classes):
        report["doubts"] = doubts
    return LabelledRows(targets, rows, paths, groups, parts, report, split_folders)


def _list_unread_classes(
    stores: Sequence[LabelledTable], file: LabelFile | None, column: str, depth: int | None, targets: Targets
) -> list[str]:
    """List the classes that only images without a row have: those that could not be read."""
    paths = [failure.path for store in stores for failure in store.failures]
    if targets.task != "single" or not paths:
        return []
    if file is not None:
        labels = file.column(column, pa.array(paths, pa.large_string()))
    elif depth is not None:
        parts = (path.split("/") for path in paths)
        labels = [part[depth] if len(part) > depth + 1 else None for part in parts]
    else:
        return []
    return sorted({label for label in labels if label is not None} - set(targets.classes))


def find_image_folders(tables: Sequence[LabelledTable]) -> list[str]:
    """List the folders on this machine that the paths of these tables are relative to, as far as they are recorded."""
    folders = []
    for table in tables:
        place, options = table.provenance.get("images"), table.provenance.get("input_options") or {}
        if isinstance(place, str) and not is_remote(place):
            is_list = os.path.splitext(place)[1].lower() in _LISTS
            folders.append(options.get("base") or (os.path.dirname(place) if is_list else place))
    return list(dict.fromkeys(folders))


def read_text_column(
    stores: Sequence[LabelledTable], file: LabelFile | None, name: str, keys: pa.Array, labels: bool = False
) -> list[str | None]:
    """Read a column as text, from the file if it has the column, else from the stores; one value for each of ``keys``.

    ``labels``: this is the column of labels; if there is a file, it must be there.
    """
    if file is not None and (labels or name in file.names):
        return file.column(name, keys, labels)
    for store in stores:
        if name not in store.schema.names or name in store.shapes:
            plain = [column for column in store.schema.names if column not in store.shapes]
            advice = ": give --labels FILE.csv with the columns path,label, or extract with --labels folder" if labels else ""
            raise UsageError(f"{store.path} has no column {name!r}, it has {', '.join(plain) or 'no rows yet'}{advice}")
    columns = [clean_labels(join_chunks(store.column(name)).cast(pa.large_string())) for store in stores]
    return pa.concat_arrays(columns).to_pylist()


def _describe_missing_labels(stores: Sequence[LabelledTable], file: LabelFile | None, column: str, keys: pa.Array) -> str:
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
        if value is None or value.lower() not in SPLIT_NAMES:
            raise UsageError(f"{column!r} of {path!r} is {value!r}: it must be train, val or test")
    return np.array([PARTS.index(SPLIT_NAMES[value.lower()]) for value in values if value is not None], np.int8)


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
        ("unread_classes", "classes are left out, for none of their images could be read"),
        ("lone_classes", "classes of one image (or group) are in the training part alone"),
        ("untrained_classes", "classes are in no row of training: their test rows count as mistakes"),
    ):
        entry = report.get(key) or {"count": 0}
        if entry["count"]:
            more = ", …" if entry["count"] > len(entry["first"]) else ""
            lines.append(f"{entry['count']:,} {text}: {', '.join(entry['first'])}{more}")
    if report.get("repeated_lines"):
        lines.append(f"{report['repeated_lines']:,} lines of the labels repeat others")
    return lines + report.get("doubts", [])
