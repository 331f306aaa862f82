from .job import MapResult, write_map

__all__ = [
    "MapResult",
    "write_map",
]
