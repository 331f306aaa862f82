from .accuracy import Evaluation, check_classes, evaluate, load_eval_images
from .predictions import Predicted, predict

__all__ = [
    "Evaluation",
    "Predicted",
    "check_classes",
    "evaluate",
    "load_eval_images",
    "predict",
]
