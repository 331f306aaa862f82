"""From a network and images to named features, by the network itself or by an engine that computes the same faster."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
