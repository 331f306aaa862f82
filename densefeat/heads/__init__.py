"""Classification heads as modules: linear, MLP, and the cross-layer head."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
