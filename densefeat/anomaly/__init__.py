"""Anomalies: what is unlike good images, learnt from good images alone, found at its place."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
