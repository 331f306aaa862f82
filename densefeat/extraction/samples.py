"""Some images of an input, chosen evenly and read before its first row."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from densefeat.errors import UsageError
from densefeat.extraction.batches import Decoding, decode_batches
from densefeat.extraction.settings import ExtractJob
from densefeat.images import Preprocessing, SelectedSource, Source, printable_key

_BATCH = 32
_CALIBRATING, HELD_OUT = 300, 64  # images that int8 is calibrated on, and others that it is compared with float32 on
_BYTES = 2**30  # of the prepared images; fewer of large ones are used, but at least 32


@dataclass(frozen=True)
class Sample:
    """Images of a ``place``, by position."""

    place: str
    source: Source
    positions: np.ndarray

    def read(self, job: ExtractJob) -> tuple[list[str], torch.Tensor]:
        """Decode those that can be: their keys, and normalised float32 ``(N, C, size, size)``."""
        keys, pixels = self.read_pixels(job.decoding, job.threads)
        return keys, job.extractor.preprocessing.normalize(pixels) if keys else pixels

    def read_pixels(self, decoding: Decoding, threads: int) -> tuple[list[str], torch.Tensor]:
        """Decode those that can be: their keys, and pixels ``(N, C, size, size)`` as the decoding gives them."""
        source = SelectedSource(self.source, self.positions)
        keys: list[str] = []
        parts: list[torch.Tensor] = []
        with (
            ThreadPoolExecutor(threads) as pool,
            closing(decode_batches(source.items(0, source.length), _BATCH, decoding, pool, 0)) as batches,
        ):
            for batch in batches:
                if batch.pixels is not None:
                    keys += [printable_key(item.key) for item in batch.items]
                    parts.append(batch.pixels)
        return keys, torch.cat(parts) if parts else torch.empty(0)

    def split(self, count: int) -> tuple["Sample", "Sample"]:
        """Split off ``count`` images, evenly, but at most a fifth: the others, and these."""
        count = min(count, -(-len(self.positions) // 5))
        held = np.linspace(0, len(self.positions) - 1, count + 2)[1:-1].round().astype(int)
        rest = replace(self, positions=np.delete(self.positions, held))
        return rest, replace(self, positions=self.positions[held])


def choose_evenly(place: str, source: Source, length: int, count: int) -> Sample:
    """Choose up to ``count`` images of a source of known length, evenly."""
    return Sample(place, source, np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def choose_for_int8(place: str, source: Source, count: int) -> Sample:
    """Choose up to ``count`` images of a source, evenly. Raises UsageError where nobody knows how many it has."""
    if source.length is None:
        raise UsageError(f"{place!r}: its length is not known, so images for int8 cannot be chosen evenly: --precision fp32")
    return choose_evenly(place, source, source.length, count)


def count_for_int8(preprocessing: Preprocessing) -> int:
    """Return how many images to calibrate on: fewer of large ones, since all of them are held in memory."""
    return max(32, min(_CALIBRATING, _BYTES // (preprocessing.make_blank(1, "cpu").numel() * 4)))
