from .classifier import CalibratedClassifier
from .selector import HeadToToeSelector
from .transformer import DenseFeatTransformer

__all__ = ["CalibratedClassifier", "DenseFeatTransformer", "HeadToToeSelector"]
