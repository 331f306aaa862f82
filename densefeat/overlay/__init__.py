"""Maps of numbers and of classes laid over the images that they were computed from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
