from .accuracy import Evaluation, evaluate, load_eval_images, open_for_network
from .class_order import read_classes
from .predictions import Predicted, ProbeNet, Scorer, open_scorer, predict
from .result_folder import ResultFolder, Results, list_place_columns

__all__ = [
    "Evaluation",
    "Predicted",
    "ProbeNet",
    "ResultFolder",
    "Results",
    "Scorer",
    "evaluate",
    "list_place_columns",
    "load_eval_images",
    "open_for_network",
    "open_scorer",
    "predict",
    "read_classes",
]
