"""The job: stream, decode, batch, run, write."""

from densefeat.extract.job import ExtractResult, extract

__all__ = ["ExtractResult", "extract"]
