"""The networks, as their papers define them, and their weights."""

import lazy_loader
import timm  # noqa: F401  (first: right after it this room's models are registered, and then no file of the room may be half imported)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
