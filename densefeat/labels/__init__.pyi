from .classes import SEPARATOR, chosen_names, names_of, number_of, several, sorted_classes, task_of
from .label_file import LabelFile
from .remarks import absent_classes, few, format_remarks, lone_classes
from .splits import PARTS, TEST, TRAIN, VAL, held_out, hold_out_val, split, split_sha256
from .stored import LABEL, Labelled, gather, values_of
from .targets import Targets, Task

__all__ = [
    "LABEL",
    "PARTS",
    "SEPARATOR",
    "TEST",
    "TRAIN",
    "VAL",
    "LabelFile",
    "Labelled",
    "Targets",
    "Task",
    "absent_classes",
    "chosen_names",
    "few",
    "format_remarks",
    "gather",
    "held_out",
    "hold_out_val",
    "lone_classes",
    "names_of",
    "number_of",
    "several",
    "sorted_classes",
    "split",
    "split_sha256",
    "task_of",
    "values_of",
]
