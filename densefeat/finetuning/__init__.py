"""Fine-tuning: training runs that start from known weights, with frozen blocks and a new head."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
