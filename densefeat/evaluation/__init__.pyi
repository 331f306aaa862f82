from .accuracy import check_classes, class_names, evaluate, images_of, load_network
from .predictions import predict

__all__ = [
    "check_classes",
    "class_names",
    "evaluate",
    "images_of",
    "load_network",
    "predict",
]
