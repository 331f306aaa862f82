"""How sure answers are: calibrated probabilities, promised shares of errors, prediction sets, and unusual images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
