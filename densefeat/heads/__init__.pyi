from .modules import KINDS, CrossLayerHead, HeadedNet, make_head
from .usage_chart import draw_usage

__all__ = [
    "KINDS",
    "CrossLayerHead",
    "HeadedNet",
    "draw_usage",
    "make_head",
]
