from .engines.openvino.engine import openvino_obstacle
from .extractor import FeatureExtractor, ImageLike, feature_name, open_image
from .pooling import Pool, parse_pools, pool_specs
from .taps import Tap, all_taps, find_taps

__all__ = [
    "FeatureExtractor",
    "ImageLike",
    "Pool",
    "Tap",
    "all_taps",
    "feature_name",
    "find_taps",
    "open_image",
    "openvino_obstacle",
    "parse_pools",
    "pool_specs",
]
