"""What fine-tuning adds to a training run: a start from known weights, frozen blocks, labelled images of one's own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
