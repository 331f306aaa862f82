"""What is odd about labels, counted and in words."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from densefeat.labels.label_file import NAMED
from densefeat.labels.splits import TRAIN
from densefeat.labels.targets import Targets


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


def few(names: Iterable[str]) -> dict[str, Any]:
    listed = list(names)
    return {"count": len(listed), "first": listed[:NAMED]}
