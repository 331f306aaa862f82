from .int8 import describe_cosines
from .job import STEPS, Exported, export_model
from .staging import list_places

__all__ = [
    "STEPS",
    "Exported",
    "describe_cosines",
    "export_model",
    "list_places",
]
