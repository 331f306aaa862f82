from .accuracy import check_classes, evaluate, load_eval_images
from .predictions import predict

__all__ = [
    "check_classes",
    "evaluate",
    "load_eval_images",
    "predict",
]
