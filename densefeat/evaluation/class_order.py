"""Which class each output of a network stands for, where the network does not name its classes."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from timm.utils import natural_key

from densefeat.base import parse_json
from densefeat.errors import UsageError
from densefeat.loading import LoadedNetwork
from densefeat.nets import read_checkpoint_records
from densefeat.training import LabelledImages

ORDERS = ("text", "natural")
_MAKERS = {"text": "torchvision and Keras", "natural": "timm"}
# entries of checkpoints with the names by number, and with the numbers by name
_LISTS = ("classes", "class_names", "label_names", "names", "categories", "idx_to_class", "idx2class", "id2label", "idx2label")
_MAPS = ("class_to_idx", "class2idx", "label2id", "label_to_idx")
_HOLDERS = ("hyper_parameters", "meta", "dataset_meta", "config", "args")  # entries that may hold these
_MAX_FILE = 2**26  # bytes
_PLAUSIBLE, _GAIN = 50.0, 25.0  # per cent of the images, for another order to be worth a word
_ROWS = 5  # images for each class, below which a matching fits by chance


def read_classes(file: Path) -> list[str]:
    """Read the classes in the order of the outputs: text, one a line, or JSON: a list, ``{name: number}``, ``{number: name}``.

    Raises UsageError for any other file.
    """
    try:
        if file.stat().st_size > _MAX_FILE:
            raise ValueError("too large for a list of classes")
        text = file.read_text(encoding="utf-8-sig")
        content = parse_json(text) if file.suffix.lower() == ".json" else text.rstrip().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"classes {str(file)!r}: {reason}") from error
    names = _parse_names(content)
    if names is None:
        raise UsageError(
            f"classes {str(file)!r}: give one class a line, or JSON: a list, or the number of each class; no class twice"
        )
    return names


def read_records(loaded: LoadedNetwork) -> Mapping[str, Any]:
    """Read what the user's checkpoint file, from which the network was loaded, holds beside tensors; nothing without one."""
    if loaded.file is None or loaded.published:
        return {}
    return read_checkpoint_records(loaded.file)


def find_recorded_classes(records: Mapping[str, Any], outputs: int) -> list[str] | None:
    """Find the classes in a checkpoint's records; None where it has none for so many outputs."""
    holders = [records, *(_as_mapping(records.get(name)) for name in _HOLDERS)]
    holders += [_as_mapping(_as_mapping(records.get("meta")).get("dataset_meta"))]
    for holder in holders:
        entries = {str(key).lower(): value for key, value in holder.items()}
        for key in (*_MAPS, *_LISTS):
            names = _parse_names(entries.get(key))
            if names is not None and len(names) == outputs:
                return names
    return None


def find_recorded_order(records: Mapping[str, Any]) -> str | None:
    """Tell by a checkpoint's records in which order its program takes folders as classes; None where that is not known."""
    arguments = _as_mapping(records.get("args"))
    if "arch" in records and "data_dir" in arguments and not arguments.get("class_map"):
        return "natural"  # timm's train.py
    if "lr_scheduler" in records and "data_path" in arguments:
        return "text"  # the training script of torchvision's references
    return None


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return vars(value) if hasattr(value, "__dict__") else {}


def _parse_names(value: Any) -> list[str] | None:
    """Read a list of names, or a mapping between names and numbers from 0; None for anything else."""
    if isinstance(value, Mapping):
        if all(isinstance(number, int) for number in value.values()):
            value = {number: name for name, number in value.items()}
        try:
            by_number = {int(number): name for number, name in value.items()}
        except (TypeError, ValueError):
            return None
        if sorted(by_number) != list(range(len(value))):
            return None
        value = [by_number[number] for number in range(len(by_number))]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str | int) for name in value):
        return None
    names = [str(name).strip() for name in value]
    return names if all(names) and len(set(names)) == len(names) else None


def sort_names(names: Iterable[str], order: str) -> list[str]:
    """Sort by letters (``"text"``), or with numbers in names by value and without regard to case (``"natural"``)."""
    return sorted(names) if order == "text" else sorted(sorted(names), key=natural_key)


def reorder_classes(labelled: LabelledImages, classes: list[str]) -> LabelledImages:
    """Number the labels by the same classes in another order."""
    numbers = np.array([classes.index(name) for name in labelled.classes] + [-1])  # the last: no label
    return replace(labelled, labels=numbers[labelled.labels], classes=classes)


def describe_assumed_order(classes: list[str]) -> str | None:
    """Return a remark on an order that was assumed, with what gives another; None where all orders are the same."""
    orders = {order: sort_names(classes, order) for order in ORDERS}
    if all(names == classes for names in orders.values()):
        return None
    others = [f"{order} ({_MAKERS[order]})" for order, names in orders.items() if names != classes]
    kind = next((order for order, names in orders.items() if names == classes), "their own")
    return (
        f"the weights do not name their classes, which are taken in {kind} order ({', '.join(classes[:3])}, …): if that is"
        f" wrong, give --class-order {' or '.join(others)}, or --classes FILE"
    )


def describe_other_order(confusion: np.ndarray) -> str | None:
    """Return a remark where the outputs fit the labels much better in another order; None elsewhere.

    ``confusion``: int64 ``(C, C)``, images by label and prediction.
    """
    images = int(confusion.sum())
    if images < _ROWS * len(confusion):
        return None
    top1 = 100 * float(np.trace(confusion)) / images
    rows, columns = linear_sum_assignment(confusion, maximize=True)
    best = 100 * float(confusion[rows, columns].sum()) / images
    if best < _PLAUSIBLE or best < top1 + _GAIN:
        return None
    return (
        f"top-1 is {top1:.2f} %, and would be {best:.2f} % if the outputs stood for these classes in another order:"
        " give --class-order or --classes FILE"
    )
