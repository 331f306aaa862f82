from .job import write_map

__all__ = [
    "write_map",
]
