"""What every room stands on: whole files, locks, progress, signals, ranks, devices, pages, printable text."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
