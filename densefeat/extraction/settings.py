"""What defines a job: what its rows are made by, what must stay the same when it goes on, and what only says how it runs."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from densefeat.base import Ranks
from densefeat.extraction.limits import FailureLimit
from densefeat.extraction.pipeline import Decoding, usable_cores
from densefeat.extraction.plan import Input
from densefeat.extraction.tiling import Tiling
from densefeat.features import FeatureExtractor, pool_specs
from densefeat.store import PART_ROWS, embedding_schema
from densefeat.version import __version__

PART_BYTES = 256 * 2**20  # of a part's vectors, before compression
_BATCHES_AHEAD = 3  # decoded in advance beside an accelerator or behind a network connection


@dataclass(frozen=True)
class ExtractResult:
    """All rows and failures at ``path``, and how many images (or tiles) this call went through: ``extracted``.

    ``shapes``: of one image's feature, by column name. ``skipped``: tiles without enough content. ``removed``: images with rows
    that the input no longer has, as found by an update.
    """

    path: Path
    failures_path: Path
    rows: int
    failures: int
    shapes: dict[str, tuple[int, ...]]
    extracted: int
    skipped: int = 0
    removed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Options:
    """How a job runs; none of it changes what is written, but for rounding (``batch_size``)."""

    batch_size: int | str
    workers: int | None
    on_error: str
    max_failures: str | int | None
    overwrite: bool
    update: bool
    engine: str


@dataclass(frozen=True)
class Job:
    """All that is decided before an image is read. ``shapes``: of one image's features. ``part_rows``: None for the default."""

    out: Path
    given: Input
    extractor: FeatureExtractor
    shapes: dict[str, tuple[int, ...]]
    dtype: str
    part_rows: int | None
    options: Options
    ranks: Ranks

    @property
    def tiling(self) -> Tiling:
        return self.given.view

    @property
    def unit(self) -> str:
        return "tiles" if self.tiling.tile else "images"

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What makes the rows, for people and for programs that make more of them."""
        extractor = self.extractor
        weights = extractor.provenance["weights"] | {"sha256": extractor.weights_sha256}
        return {
            "densefeat": __version__,
            "torch": torch.__version__,
            "images": self.given.images,
            "input_options": self.given.options,
            **extractor.provenance,
            "weights": weights,
            "preprocessing": extractor.preprocessing.to_json(),
            "decoder": extractor.decoder,
            "blocks": [tap.name for tap in extractor.taps],
            "tap": extractor.tap,
            "pool": pool_specs(extractor.pool),
            "precision": extractor.precision,
            "backend": extractor.backend,
            "tiles": None if self.tiling.tile is None else asdict(self.tiling),
        }

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What must be the same for rows to stand in one store."""
        made = self.provenance
        names = ("model", "preprocessing", "decoder", "blocks", "tap", "pool", "precision", "backend", "tiles")
        return {
            **{name: made[name] for name in names},
            "weights_sha256": made["weights"]["sha256"],
            "dtype": self.dtype,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "labels": self.given.listing.labelled,
            "max_pixels": self.tiling.max_pixels,
            "part_rows": self.bounded_part_rows(),
        }

    def bounded_part_rows(self) -> int:
        """As asked, or the default, but no more than ``PART_BYTES`` of vectors."""
        row_bytes = sum(int(np.prod(shape)) for shape in self.shapes.values()) * np.dtype(self.dtype).itemsize
        return max(1, min(self.part_rows or PART_ROWS, PART_BYTES // max(1, row_bytes)))

    @cached_property
    def schema(self) -> pa.Schema:
        tiled = self.tiling.tile is not None
        return embedding_schema(self.shapes, self.provenance, self.dtype, self.given.listing.labelled, tiled)

    @cached_property
    def decoding(self) -> Decoding:
        preprocessing = self.extractor.preprocessing
        if self.tiling.tile:  # the whole tile, nothing cropped off its borders
            preprocessing = replace(preprocessing, crop_mode="squash", crop_pct=1.0)
        return Decoding(preprocessing.geometry(), self.extractor.decoder, self.tiling.max_pixels)

    @property
    def threads(self) -> int:
        """That read and decode; a network connection is kept busy by more of them than there are cores."""
        return self.options.workers or usable_cores() * (4 if self.remote else 1)

    @property
    def remote(self) -> bool:
        return "://" in self.given.images or self.given.images.startswith("hf:")

    @property
    def ahead(self) -> int:
        return _BATCHES_AHEAD if self.remote or self.extractor.device.type != "cpu" else 0

    def limit(self) -> FailureLimit:
        return FailureLimit.parse(self.options.on_error, self.options.max_failures)
