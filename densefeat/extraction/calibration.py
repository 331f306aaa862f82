"""The calibration of a job in int8, before its first row: on images of its input, compared with float32 on others."""

import hashlib
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densefeat.errors import DensefeatError, OutputError, UsageError
from densefeat.extraction.changes import refuse_other_settings
from densefeat.extraction.plan import has_nothing
from densefeat.extraction.samples import HELD_OUT, choose_for_int8, count_for_int8
from densefeat.extraction.settings import ExtractJob, describe_place
from densefeat.features import QuantizedNetwork, check_nncf
from densefeat.images import open_source
from densefeat.store import Layout, Manifest, is_store, read_manifest, read_quantized, require_manifest, save_quantized

_FEWEST = 8  # images to calibrate on; as many again are not needed to compare with float32, but one is
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationRequest:
    """What the user asks of a calibration: its ``source`` in place of the input, and the least median cosine to float32.

    ``source``: images, or the folder of a store in int8, whose network is taken.
    """

    source: str | Path | None = None
    min_cosine: float = 0.99

    def check(self, precision: str) -> None:
        """Raise UsageError for a value out of range, or a source without int8."""
        if not 0 <= self.min_cosine <= 1:
            raise UsageError(f"min cosine {self.min_cosine}: give a number from 0 to 1")
        if self.source is not None and precision != "int8":
            raise UsageError(f"--calibration is for --precision int8, not {precision}")

    @property
    def store(self) -> Layout | None:
        """The store whose network is taken; None where the source is images."""
        return Layout(Path(self.source)) if self.source is not None and is_store(Path(self.source)) else None


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
        _refuse_other_calibration(layout, job.calibration or {}, request)
        _check_cosines(job.calibration or {}, request.min_cosine)
        return job
    record = _calibrate(job, request) if request.store is None else _take_network(job, request.store)
    _check_cosines(record, request.min_cosine)
    _log.info(_describe_cosines(record))
    return replace(job, calibration=record)


def keep_network(job: ExtractJob, layout: Layout) -> None:
    """Keep the job's network in int8 beside the rows it is to make, once the store is the job's and has no others."""
    network, manifest = job.extractor.quantized, require_manifest(layout)
    if network is None or job.calibration is None:
        return
    with suppress(OutputError):  # there is none, or that of rows that are gone
        read_quantized(layout, manifest)
        return
    save_quantized(layout, job.calibration, network.nodes, network.constants)


def join_calibration(job: ExtractJob, layout: Layout, manifest: Manifest | None = None) -> ExtractJob:
    """Return the job with the network in int8 of a store. ``manifest``: None: as it is there now."""
    manifest = manifest or read_manifest(layout)
    if job.extractor.precision != "int8" or manifest is None:
        return job
    return replace(job, calibration=_use_network(job, layout, manifest))


def _use_network(job: ExtractJob, layout: Layout, manifest: Manifest) -> dict[str, Any]:
    """Let the job's extractor compute by the network of a store; return its record."""
    found = read_quantized(layout, manifest)
    if found is None:
        raise UsageError(f"{str(layout.root)!r} was not made in int8: it has no such network")
    record, nodes, constants = found
    job.extractor.use_quantized(QuantizedNetwork(nodes, constants))
    return record


def _refuse_other_calibration(layout: Layout, record: dict[str, Any], request: CalibrationRequest) -> None:
    if request.store is not None:
        made, requested = record.get("sha256"), require_manifest(request.store).settings.get("calibration")
    elif request.source is not None:
        made, requested = record.get("images"), describe_place(request.source)
    else:
        return
    refuse_other_settings(layout, {"calibration": made}, {"calibration": requested})


def _take_network(job: ExtractJob, store: Layout) -> dict[str, Any]:
    """Take the network of a store in int8; return its record, with the cosines of images of this job's input."""
    manifest = require_manifest(store)
    own = ("weights_sha256", "blocks", "tap", "preprocessing")
    if different := [name for name in own if manifest.settings.get(name) != job.settings[name]]:
        raise UsageError(f"--calibration {str(store.root)!r} is a store of other settings ({', '.join(different)})")
    record = _use_network(job, store, manifest)
    source = job.input.tiling.cut(job.input.listing)
    keys, images = _leave_out(record["pixels"], *choose_for_int8(job.input.images, source, HELD_OUT).read(job))
    if not keys:
        raise UsageError(
            f"no image of {job.input.images!r} could be read that int8 was not calibrated on, to compare it with float32"
        )
    return record | {"held_out": keys, "cosine": _measure_cosines(job, images)}


def _leave_out(calibrated: list[str], keys: list[str], images: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    """Leave out the images that int8 was calibrated on, by their pixels: on these it looks better than on others."""
    known = set(calibrated)
    kept = [place for place, pixels in enumerate(_hash_pixels(images)) if pixels not in known]
    return [keys[place] for place in kept], images[kept]


def _hash_pixels(images: torch.Tensor) -> list[str]:
    return [hashlib.sha256(image.numpy()).hexdigest()[:16] for image in images]


def _calibrate(job: ExtractJob, request: CalibrationRequest) -> dict[str, Any]:
    """Calibrate the job's extractor; return the record. Raises as :func:`calibrate_job` does."""
    check_nncf()
    own, count = job.input.tiling.cut(job.input.listing), count_for_int8(job.extractor.preprocessing)
    if request.source is not None:
        other = job.input.tiling.cut(open_source(request.source))
        chosen = choose_for_int8(describe_place(request.source), other, count)
        held_out = choose_for_int8(job.input.images, own, HELD_OUT)
    else:
        chosen, held_out = choose_for_int8(job.input.images, own, count + HELD_OUT).split(HELD_OUT)
    _log.info("int8: calibrating on %d images of %s", len(chosen.positions), chosen.place)
    (keys, images), (held_keys, held_images) = chosen.read(job), held_out.read(job)
    pixels = _hash_pixels(images)
    held_keys, held_images = _leave_out(pixels, held_keys, held_images)
    if len(keys) < _FEWEST or not held_keys:
        raise UsageError(
            f"{len(keys)} images of {chosen.place!r} to calibrate int8 on, and {len(held_keys)} to compare it with float32: at"
            f" least {_FEWEST} and 1 are needed; --calibration takes images of another place"
        )
    job.extractor.calibrate(images)
    network = job.extractor.quantized
    assert network is not None
    record = {"sha256": network.sha256, "images": chosen.place, "keys": keys, "pixels": pixels, "held_out": held_keys}
    return record | {"cosine": _measure_cosines(job, held_images)}


def _measure_cosines(job: ExtractJob, images: torch.Tensor) -> dict[str, dict[str, float]]:
    """Compare int8 with float32: for each block the median and the least cosine."""
    cosines = {name: values.numpy() for name, values in job.extractor.compare_to_float32(images).items()}
    return {name: {"median": float(np.median(values)), "least": float(values.min())} for name, values in cosines.items()}


def _check_cosines(record: dict[str, Any], least: float) -> None:
    """Raise DensefeatError where int8 differs too much from float32, OutputError where a store's record is damaged."""
    try:
        medians = {name: float(measured["median"]) for name, measured in record["cosine"].items()}
        worst = min(medians, key=lambda name: np.nan_to_num(medians[name], nan=-np.inf))  # min skips NaN
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
