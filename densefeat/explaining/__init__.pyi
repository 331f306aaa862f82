from .job import Explained, explain

__all__ = [
    "Explained",
    "explain",
]
