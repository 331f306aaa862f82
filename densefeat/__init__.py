"""Multi-scale embeddings from every block of DenseNet and DelugeNet. Importing this registers the models with timm."""

import importlib
import sys

import lazy_loader

from densefeat.base.imports import run_after_import
from densefeat.base.moved import MovedModules
from densefeat.base.telemetry import refuse_telemetry

# names load what they need when they are first used, so that commands that need neither torch nor timm start at once
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

refuse_telemetry()  # before any library that sends some is imported
run_after_import("timm", lambda: importlib.import_module("densefeat.nets.zoo"))
sys.meta_path.append(MovedModules())
