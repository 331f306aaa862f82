"""Embeddings from every block of DenseNet and DelugeNet. Importing this registers the models with timm."""

from densefeat.errors import DensefeatError, UsageError, WeightsError
from densefeat.extract import ExtractResult, extract
from densefeat.features.extractor import FeatureExtractor
from densefeat.heads.network import load_run
from densefeat.nets import zoo as _zoo  # noqa: F401  (registers the models)
from densefeat.nets.deluge_net import CrossLayerDepthwise, DelugeNet
from densefeat.nets.dense_net import DenseNet
from densefeat.nets.weights import load_weights
from densefeat.store.reader import Store, open_store
from densefeat.version import __version__

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
