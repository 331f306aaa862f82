"""The job: stream, decode, batch, run, write, resume."""

from densefeat.extract.job import extract
from densefeat.extract.settings import ExtractResult

__all__ = ["ExtractResult", "extract"]
