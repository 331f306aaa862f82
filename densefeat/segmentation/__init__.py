"""Classes of pixels: a dense linear or nearest-neighbour probe of every block, and masks predicted by it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
