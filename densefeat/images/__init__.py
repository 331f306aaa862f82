"""From what the user names to an ordered stream of images, and from their bytes to pixels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
