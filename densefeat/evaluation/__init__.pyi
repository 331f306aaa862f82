from .accuracy import check_classes, evaluate, images_of
from .predictions import predict

__all__ = [
    "check_classes",
    "evaluate",
    "images_of",
    "predict",
]
