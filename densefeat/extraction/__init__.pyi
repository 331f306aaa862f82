from .job import extract
from .settings import ExtractResult

__all__ = [
    "ExtractResult",
    "extract",
]
