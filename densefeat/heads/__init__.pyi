from .cross_layer import CrossLayerHead
from .kinds import KINDS, make_head

__all__ = [
    "KINDS",
    "CrossLayerHead",
    "make_head",
]
