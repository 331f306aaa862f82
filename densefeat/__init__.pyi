from .errors import DensefeatError, UsageError, WeightsError
from .extraction import ExtractResult, extract
from .features import FeatureExtractor
from .loading import load_run
from .nets import CrossLayerDepthwise, DelugeNet, DenseNet, load_weights
from .store import Store, open_store
from .version import __version__

__all__ = [
    "CrossLayerDepthwise",
    "DelugeNet",
    "DenseNet",
    "DensefeatError",
    "ExtractResult",
    "FeatureExtractor",
    "Store",
    "UsageError",
    "WeightsError",
    "__version__",
    "extract",
    "load_run",
    "load_weights",
    "open_store",
]
