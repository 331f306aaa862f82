from .engines.openvino.engine import find_openvino_obstacle
from .extractor import FeatureExtractor, feature_name
from .pooling import Pool, parse_pools, pool_specs
from .taps import Tap, all_taps, find_taps

__all__ = [
    "FeatureExtractor",
    "Pool",
    "Tap",
    "all_taps",
    "feature_name",
    "find_openvino_obstacle",
    "find_taps",
    "load_openvino",
    "parse_pools",
    "pool_specs",
]
