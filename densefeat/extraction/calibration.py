"""The calibration of a job in int8, before its first row: on images of its input, compared with float32 on others."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densefeat.errors import DensefeatError, OutputError, UsageError
from densefeat.extraction.batches import decode_batches
from densefeat.extraction.changes import refuse_other_settings
from densefeat.extraction.plan import has_nothing
from densefeat.extraction.settings import ExtractJob, describe_place
from densefeat.features import QuantizedNetwork, check_nncf
from densefeat.images import SelectedSource, Source, open_source, printable_key
from densefeat.store import Layout, Manifest, read_manifest, read_quantized, save_quantized

_IMAGES, _HELD_OUT = 300, 64
_FEWEST = 8  # images to calibrate on; as many again are not needed to compare with float32, but one is
_BYTES = 2**30  # of the prepared images; fewer of large ones are used, but at least 32
_BATCH = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationRequest:
    """What the user asks of a calibration: ``images`` in place of the input's, and the least median cosine to float32."""

    images: str | Path | None = None
    min_cosine: float = 0.99

    def check(self, precision: str) -> None:
        """Raise UsageError for a value out of range, or images without int8."""
        if not 0 <= self.min_cosine <= 1:
            raise UsageError(f"min cosine {self.min_cosine}: give a number from 0 to 1")
        if self.images is not None and precision != "int8":
            raise UsageError(f"--calibration is for --precision int8, not {precision}")


def calibrate_job(job: ExtractJob, layout: Layout | None, request: CalibrationRequest) -> ExtractJob:
    """Return the job with its extractor ready: the store's own network in int8 where it has rows, else one made now.

    ``layout``: None for a single file. Jobs of other precisions stay as they are.

    Raises:
        UsageError: The store's rows have another precision or calibration, or there are too few images.
        OutputError: The store's network is missing or damaged.
        DensefeatError: int8 differs from float32 by more than the request allows.
    """
    if job.extractor.precision != "int8":
        return job
    current = None if layout is None or job.options.overwrite else read_manifest(layout)
    if layout is not None and current is not None and not has_nothing(layout, current):
        refuse_other_settings(layout, {"precision": current.settings.get("precision")}, {"precision": "int8"})
        job = join_calibration(job, layout, current)
        _check_cosines(job.calibration or {}, request.min_cosine)
        if request.images is not None:
            made = {"calibration": (job.calibration or {}).get("images")}
            refuse_other_settings(layout, made, {"calibration": describe_place(request.images)})
        return job
    record = _calibrate(job, request)
    if layout is not None:
        network = job.extractor.quantized
        assert network is not None  # it was made just now
        save_quantized(layout, record, network.nodes, network.constants)
    return replace(job, calibration=record)


def join_calibration(job: ExtractJob, layout: Layout, manifest: Manifest | None = None) -> ExtractJob:
    """Return the job with the network in int8 of a store. ``manifest``: None: as it is there now."""
    manifest = manifest or read_manifest(layout)
    if job.extractor.precision != "int8" or manifest is None:
        return job
    found = read_quantized(layout, manifest)
    if found is None:
        raise OutputError(f"output {str(layout.root)!r} names no network in int8: --overwrite starts over")
    record, nodes, constants = found
    job.extractor.use_quantized(QuantizedNetwork(nodes, constants))
    return replace(job, calibration=record)


def _calibrate(job: ExtractJob, request: CalibrationRequest) -> dict[str, Any]:
    """Calibrate the job's extractor; return the record. Raises as :func:`calibrate_job` does."""
    check_nncf()
    source = job.input.tiling.cut(job.input.listing)
    count = _count_images(job)
    if request.images is not None:
        place, other = describe_place(request.images), job.input.tiling.cut(open_source(request.images))
        calibrating = SelectedSource(other, _choose_evenly(other, count, place))
        held_out = SelectedSource(source, _choose_evenly(source, _HELD_OUT, job.input.images))
    else:
        place = job.input.images
        positions = _choose_evenly(source, count + _HELD_OUT, place)
        held = np.linspace(0, len(positions) - 1, min(_HELD_OUT, -(-len(positions) // 5)) + 2)[1:-1].round().astype(int)
        calibrating = SelectedSource(source, np.delete(positions, held))
        held_out = SelectedSource(source, positions[held])
    _log.info("int8: calibrating on %d images of %s", calibrating.length, place)
    keys, images = _read_images(job, calibrating)
    held_keys, held_images = _read_images(job, held_out)
    if len(keys) < _FEWEST or not held_keys:
        raise UsageError(
            f"{len(keys)} images of {place!r} to calibrate int8 on, and {len(held_keys)} to compare it with float32: at least"
            f" {_FEWEST} and 1 are needed; --calibration takes images of another place"
        )
    cosines = {name: values.numpy() for name, values in job.extractor.calibrate(images, held_images).items()}
    network = job.extractor.quantized
    assert network is not None
    record = {
        "sha256": network.sha256,
        "images": place,
        "keys": keys,
        "held_out": held_keys,
        "cosine": {
            name: {"median": float(np.median(values)), "least": float(values.min())} for name, values in cosines.items()
        },
    }
    _check_cosines(record, request.min_cosine)
    _log.info(_describe_cosines(record))
    return record


def _check_cosines(record: dict[str, Any], least: float) -> None:
    """Raise DensefeatError where int8 differs too much from float32, OutputError where a store's record is damaged."""
    try:
        medians = {name: float(measured["median"]) for name, measured in record["cosine"].items()}
        worst = min(medians, key=lambda name: medians[name])
        line = _describe_cosines(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OutputError(
            f"the record of int8 is damaged ({type(error).__name__}: {error}): --overwrite starts over"
        ) from error
    if not medians[worst] >= least:
        raise DensefeatError(
            f"{line}: {worst} is below --min-cosine {least:g}: use --precision fp32, or --calibration with images that are more"
            " like those to come"
        )


def _describe_cosines(record: dict[str, Any]) -> str:
    told = ", ".join(f"{name} {cosine['median']:.4f} ({cosine['least']:.4f})" for name, cosine in record["cosine"].items())
    counts = f"calibrated on {len(record['keys'])} images; cosine to float32 on {len(record['held_out'])} others"
    return f"int8: {counts}, median (least): {told}"


def _count_images(job: ExtractJob) -> int:
    """Return how many images to calibrate on: fewer of large ones, since all of them are held in memory."""
    size = job.extractor.preprocessing.make_blank(1, "cpu").numel() * 4
    return max(32, min(_IMAGES, _BYTES // size))


def _choose_evenly(source: Source, count: int, place: str) -> np.ndarray:
    """Choose up to ``count`` positions of a source, evenly: int64, ascending."""
    if source.length is None:
        raise UsageError(f"{place!r}: its length is not known, so images for int8 cannot be chosen evenly: --precision fp32")
    return np.linspace(0, source.length - 1, min(count, source.length)).round().astype(np.int64)


def _read_images(job: ExtractJob, source: Source) -> tuple[list[str], torch.Tensor]:
    """Decode the images of a source that can be: their keys, and normalised float32 ``(N, C, size, size)``."""
    keys: list[str] = []
    parts = [torch.empty(0)]
    for names, images in _prepare_batches(job, source):
        keys += names
        parts.append(images)
    return keys, torch.cat(parts[1:] or parts)


def _prepare_batches(job: ExtractJob, source: Source) -> Iterator[tuple[list[str], torch.Tensor]]:
    with (
        ThreadPoolExecutor(job.threads) as pool,
        closing(decode_batches(source.items(0, source.length or 0), _BATCH, job.decoding, pool, 0)) as batches,
    ):
        for batch in batches:
            if batch.pixels is not None:
                yield [printable_key(item.key) for item in batch.items], job.extractor.preprocessing.normalize(batch.pixels)
