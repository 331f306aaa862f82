"""Labels that are names of folders, as ``extract --labels folder`` writes them, and the parts that folders of splits assign."""

from collections.abc import Sequence

import numpy as np

from densefeat.errors import UsageError
from densefeat.images import SPLIT_NAMES, find_splits, list_inner_folders
from densefeat.labels.splits import PARTS


def find_label_depth(paths: Sequence[str], labels: Sequence[str]) -> int | None:
    """Find which folder of its path each label is: 0, the first; 1, the one in a split's folder; None: labels are others."""
    parts = [path.split("/", 2) for path in paths]
    pairs = list(zip(parts, labels, strict=True))
    if all(len(part) > 1 and part[0] == label for part, label in pairs):
        return 0 if pairs else None
    if all(len(part) > 2 and part[1] == label and part[0].lower() in SPLIT_NAMES for part, label in pairs):
        return 1
    return None


def read_parts(paths: Sequence[str]) -> np.ndarray:
    """Return the part of each path by the split that its first folder is, int8 ``(n,)``."""
    return np.array([PARTS.index(SPLIT_NAMES[path.partition("/")[0].lower()]) for path in paths], np.int8)


def check_classes_are_no_splits(paths: Sequence[str], subject: str) -> None:
    """Raise UsageError where the first folders of the paths, which are their labels, are splits or may be."""
    splits = find_splits(list_inner_folders(path.encode("utf-8", "surrogatepass") for path in paths), subject)
    if splits:
        names = " and ".join(map(repr, splits.values()))
        raise UsageError(f"{subject}: its labels are the splits {names}, not the classes in them: extract it again")
