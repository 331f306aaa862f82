from .job import Segmented, probe_masks
from .page import class_table, segment_table
from .predictions import Painted, predict_masks
from .segmenter import Segmenter, load_segmenter

__all__ = [
    "Painted",
    "Segmented",
    "Segmenter",
    "class_table",
    "load_segmenter",
    "predict_masks",
    "probe_masks",
    "segment_table",
]
