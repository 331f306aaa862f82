"""Anomalies: images that are unlike good ones, and where in the image; learnt from good images alone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
