"""Some images of a job's input, chosen evenly and read before its first row."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from densefeat.extraction.batches import decode_batches
from densefeat.extraction.settings import ExtractJob
from densefeat.images import SelectedSource, Source, printable_key

_BATCH = 32


@dataclass(frozen=True)
class Sample:
    """Images of a ``place``, by position."""

    place: str
    source: Source
    positions: np.ndarray

    def read(self, job: ExtractJob) -> tuple[list[str], torch.Tensor]:
        """Decode those that can be: their keys, and normalised float32 ``(N, C, size, size)``."""
        source = SelectedSource(self.source, self.positions)
        keys: list[str] = []
        parts = [torch.empty(0)]
        with (
            ThreadPoolExecutor(job.threads) as pool,
            closing(decode_batches(source.items(0, source.length), _BATCH, job.decoding, pool, 0)) as batches,
        ):
            for batch in batches:
                if batch.pixels is not None:
                    keys += [printable_key(item.key) for item in batch.items]
                    parts.append(job.extractor.preprocessing.normalize(batch.pixels))
        return keys, torch.cat(parts[1:] or parts)


def choose_evenly(place: str, source: Source, length: int, count: int) -> Sample:
    """Choose up to ``count`` images of a source of known length, evenly."""
    return Sample(place, source, np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))
