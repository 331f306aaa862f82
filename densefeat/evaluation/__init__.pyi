from .accuracy import Evaluation, evaluate, load_eval_images, open_for_network
from .class_order import read_classes
from .predictions import Predicted, ProbeNet, Scorer, open_scorer, predict
from .result_folder import ResultFolder, Results

__all__ = [
    "Evaluation",
    "Predicted",
    "ProbeNet",
    "ResultFolder",
    "Results",
    "Scorer",
    "evaluate",
    "load_eval_images",
    "open_for_network",
    "open_scorer",
    "predict",
    "read_classes",
]
