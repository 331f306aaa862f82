from .job import STEPS, Exported, export_model
from .staging import list_places

__all__ = [
    "STEPS",
    "Exported",
    "export_model",
    "list_places",
]
