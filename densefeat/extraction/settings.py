"""The settings of a job: what makes its rows, what must not change when it resumes, and how it runs."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from densefeat.base import Ranks, count_usable_cores
from densefeat.errors import UsageError
from densefeat.extraction.arguments import RunOptions
from densefeat.extraction.batches import Decoding
from densefeat.extraction.limits import FailureLimit
from densefeat.features import FeatureExtractor
from densefeat.images import MAX_PIXELS, MAX_TILES, Listing, PagedSource, Source, Stamps, TiledSource, is_remote, printable_key
from densefeat.store import PART_ROWS, make_embedding_schema, split_pools
from densefeat.version import __version__

_PART_BYTES = 256 * 2**20  # of a part's vectors, before compression
_BATCHES_AHEAD = 3  # decoded in advance beside an accelerator or behind a network connection


@dataclass(frozen=True)
class ExtractResult:
    """The result of a call of :func:`densefeat.extract`.

    Attributes:
        path, failures_path: Where the rows and the failures are.
        rows, failures: How many of them the store has now, those of earlier calls among them.
        shapes: The shape of one image's feature, by column name.
        extracted: Images (or tiles) that this call processed.
        skipped: Tiles without enough content.
        removed: Images with rows that the input no longer has, as an update found.
        seconds: Duration of this call.
        left_out: What is in the input and no image, in words, such as "12 .pdf, 3 .psd".
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
    left_out: str = ""


@dataclass(frozen=True)
class Tiling:
    """A way to take files apart, into ``pages`` and these into tiles; with ``tile`` None they are not cut."""

    tile: int | None = None
    stride: int | None = None
    min_content: float = 0.0
    max_pixels: int = MAX_PIXELS
    max_tiles: int = MAX_TILES
    pages: str | int = "first"
    mpp: float | None = None

    def __post_init__(self) -> None:
        if self.tile is None and (self.stride is not None or self.min_content or self.mpp is not None):
            raise UsageError("--stride, --min-content and --mpp are for tiles: give --tile too")

    def open_pages(self, source: Source) -> Source:
        """Return the source of the files' pages, or the files themselves, of which the first page is read."""
        return source if self.pages == "first" else PagedSource(source, self.pages, self.max_pixels)

    def describe_tiles(self) -> dict[str, Any] | None:
        """Return how images are cut into tiles, for the record; None: they are not."""
        names = ("tile", "stride", "min_content", "max_pixels", "max_tiles", "mpp")
        return None if self.tile is None else {name: getattr(self, name) for name in names}

    def cut(self, source: Source) -> Source:
        """Return the source of the images' tiles, or the images themselves."""
        source = self.open_pages(source)
        if self.tile is None:
            return source
        return TiledSource(source, self.tile, self.stride, self.min_content, self.max_pixels, self.max_tiles, self.mpp)


@dataclass(frozen=True)
class JobInput:
    """The images of a job. ``listing`` is all of them; ``images`` and ``options`` say, for the record, how it was opened."""

    images: str
    options: dict[str, Any]
    listing: Listing
    tiling: Tiling

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the listing, computed once because that reads the keys of the whole input."""
        return self.listing.fingerprint()

    @cached_property
    def stamps(self) -> Stamps:
        """The state of the input's files at the beginning of the job."""
        return self.listing.stamps()

    def fingerprint_source(self, source: Source) -> str:
        """Return the fingerprint of a source that is extracted; without tiles it may be the listing itself."""
        return self.fingerprint if source is self.listing else source.fingerprint()


@dataclass(frozen=True)
class ExtractJob:
    """A job: everything that is decided before an image is read.

    ``part_rows``: None stands for the default; ``fitted``: mean and deviation of the channels are those of the images;
    ``dicom_tags``: elements of DICOM files whose values are columns; ``calibration``: the JSON record of a network in int8;
    ``trials``: the JSON records of the backends that were tried.
    """

    out: Path
    input: JobInput
    extractor: FeatureExtractor
    shapes: dict[str, tuple[int, ...]]
    dtype: str
    part_rows: int | None
    options: RunOptions
    ranks: Ranks
    fitted: bool = False
    dicom_tags: tuple[str, ...] = ()
    calibration: dict[str, Any] | None = None
    trials: list[dict[str, Any]] | None = None

    @property
    def unit(self) -> str:
        return "tiles" if self.input.tiling.tile else "images"

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What made the rows, for people, and for programs that make more of them."""
        extractor = self.extractor
        tiling = self.input.tiling
        weights = extractor.provenance["weights"] | {"sha256": extractor.weights_sha256}
        return {
            "densefeat": __version__,
            "torch": torch.__version__,
            "images": self.input.images,
            "input_options": self.input.options,
            **extractor.provenance,
            "weights": weights,
            "preprocessing": extractor.preprocessing.to_json(),
            "channel_stats": "fit" if self.fitted else None,
            "decoder": extractor.decoder,
            "blocks": [tap.name for tap in extractor.taps],
            "tap": extractor.tap,
            "pool": split_pools(extractor.pool),
            "precision": getattr(extractor.model, "recorded_precision", None) or extractor.precision,
            "calibration": self.calibration and _count_keys(self.calibration),
            "backend": extractor.backend,
            "trials": self.trials,
            "tiles": tiling.describe_tiles(),
            "pages": None if tiling.pages == "first" else tiling.pages,  # as in stores of earlier versions
            "dicom_tags": list(self.dicom_tags) or None,
        }

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that determine a row; they must not change when a job resumes."""
        provenance = self.provenance
        rows = ("model", "preprocessing", "decoder", "blocks", "tap", "pool", "precision", "backend")
        names = (*rows, "tiles", "pages", "dicom_tags")
        return {
            **{name: provenance[name] for name in names},
            "weights_sha256": provenance["weights"]["sha256"],
            "calibration": self.calibration and self.calibration["sha256"],
            "dtype": self.dtype,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "labels": self.input.listing.labelled,
            "max_pixels": self.input.tiling.max_pixels,
            "part_rows": self._bounded_part_rows(),
        }

    def _bounded_part_rows(self) -> int:
        """Return the rows of a part: as requested, or the default, but no more than ``_PART_BYTES`` of vectors."""
        row_bytes = sum(int(np.prod(shape)) for shape in self.shapes.values()) * np.dtype(self.dtype).itemsize
        return max(1, min(self.part_rows or PART_ROWS, _PART_BYTES // max(1, row_bytes)))

    @cached_property
    def schema(self) -> pa.Schema:
        tiled = self.input.tiling.tile is not None
        paged = self.input.tiling.pages != "first"
        labelled = self.input.listing.labelled
        return make_embedding_schema(self.shapes, self.provenance, self.dtype, labelled, tiled, paged, self.dicom_tags)

    @cached_property
    def decoding(self) -> Decoding:
        preprocessing = self.extractor.preprocessing
        if self.input.tiling.tile:  # a tile is resized as a whole: nothing is cropped off its borders
            preprocessing = replace(preprocessing, crop_mode="squash", crop_pct=1.0)
        tiling = self.input.tiling
        return Decoding(
            preprocessing.geometry(), self.extractor.decoder, tiling.max_pixels, preprocessing.pixels, self.dicom_tags
        )

    @property
    def threads(self) -> int:
        """The number of threads that read and decode; a network connection needs more of them than there are cores."""
        return self.options.workers or count_usable_cores() * (4 if self._remote else 1)

    @property
    def ahead(self) -> int:
        """The number of batches that are decoded in advance."""
        return _BATCHES_AHEAD if self._remote or self.extractor.device.type != "cpu" else 0

    @property
    def _remote(self) -> bool:
        return is_remote(self.input.images)

    def failure_limit(self) -> FailureLimit:
        return FailureLimit.parse(self.options.on_error, self.options.max_failures)


def _count_keys(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a calibration with numbers in place of its hundreds of images, which stay with the network."""
    counted = {name: len(value) if isinstance(value, list) else value for name, value in record.items()}
    return {name: value for name, value in counted.items() if name != "pixels"}


def describe_place(images: str | Path) -> str:
    """Return an input as the manifest records it: printable, and absolute if it is on this machine."""
    text = os.fspath(images)
    return printable_key(text if is_remote(text) else os.path.abspath(text))


def has_rows_of_parts(settings: dict[str, Any]) -> bool:
    """Tell by a store's settings whether an image may have several rows: tiles or pages."""
    return bool(settings["tiles"]) or settings.get("pages") == "all"
