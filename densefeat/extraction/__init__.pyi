from .arguments import RunOptions, check_arguments
from .job import extract
from .settings import ExtractResult

__all__ = [
    "ExtractResult",
    "RunOptions",
    "check_arguments",
    "extract",
]
