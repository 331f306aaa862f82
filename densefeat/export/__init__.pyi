from .job import STEPS, Exported, export_model

__all__ = [
    "STEPS",
    "Exported",
    "export_model",
]
