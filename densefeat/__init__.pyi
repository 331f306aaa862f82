from .errors import DensefeatError, UsageError, WeightsError
from .extraction import ExtractResult, extract
from .features import FeatureExtractor
from .images import ChannelStats, PixelRule
from .loading import load_run
from .nets import CrossLayerDepthwise, DelugeNet, DenseNet, load_weights
from .probing import Probe, Probed, load_probe, probe
from .store import Store, open_store
from .version import __version__

__all__ = [
    "ChannelStats",
    "CrossLayerDepthwise",
    "DelugeNet",
    "DenseNet",
    "DensefeatError",
    "ExtractResult",
    "FeatureExtractor",
    "PixelRule",
    "Probe",
    "Probed",
    "Store",
    "UsageError",
    "WeightsError",
    "__version__",
    "extract",
    "load_probe",
    "load_run",
    "load_weights",
    "open_store",
    "probe",
]
