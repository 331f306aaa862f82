from .engines.openvino.engine import convert_program, find_openvino_obstacle, get_openvino_core
from .engines.openvino.quantize import check_nncf, quantize_convolutions
from .engines.quantized import QuantizedNetwork
from .engines.triton.engine import count_traffic
from .extractor import FeatureExtractor
from .grid import GridRule
from .pooling import Pool, parse_pools
from .proof import Trial
from .taps import Tap, find_taps, list_taps

__all__ = [
    "FeatureExtractor",
    "GridRule",
    "Pool",
    "QuantizedNetwork",
    "Tap",
    "Trial",
    "check_nncf",
    "convert_program",
    "count_traffic",
    "find_openvino_obstacle",
    "find_taps",
    "get_openvino_core",
    "list_taps",
    "parse_pools",
    "quantize_convolutions",
]
