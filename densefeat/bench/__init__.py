"""The comparison of our backends with what one would use instead, and what all benchmarks share to measure and report."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
