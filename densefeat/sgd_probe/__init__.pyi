from .job import probe_images

__all__ = [
    "probe_images",
]
