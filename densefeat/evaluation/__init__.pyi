from .accuracy import Evaluation, evaluate, load_eval_images, open_for_network
from .class_order import read_classes
from .predictions import Predicted, predict

__all__ = [
    "Evaluation",
    "Predicted",
    "evaluate",
    "load_eval_images",
    "open_for_network",
    "predict",
    "read_classes",
]
