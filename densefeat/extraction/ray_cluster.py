"""The executor ``ray``: a pool of actors on a Ray cluster, each of which extracts whole parts into the shared folder.

A part is started, written and recorded as by the local executor, so the part of an actor that was killed is simply done again,
and the store is the same. Ray's own readers are not used: they return files in an order of their own, and one file that cannot
be read fails the whole job.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from densefeat.base import Ranks, StopRequest, progress_bar, stop_on_signal
from densefeat.errors import OutputError, UsageError
from densefeat.extraction.batches import Decoding, choose_batch_size
from densefeat.extraction.limits import FailureLimit
from densefeat.extraction.part import PartExtractor
from densefeat.extraction.plan import Plan
from densefeat.extraction.settings import ExtractJob
from densefeat.features import FeatureExtractor, QuantizedNetwork
from densefeat.images import MEMORY


@dataclass
class ActorSettings:
    """The settings that every actor of a job gets. ``model`` is on the CPU."""

    model: nn.Module
    quantized: QuantizedNetwork | None
    extractor_options: dict[str, Any]
    plan: Plan
    schema: pa.Schema
    dtype: str
    decoding: Decoding
    batch_size: int | str
    threads: int
    ahead: int
    memory: int | None


class PartActor:
    """A process that holds the network; called with part numbers, it extracts them."""

    def __init__(self, settings: ActorSettings) -> None:
        self.plan = settings.plan
        MEMORY.start(settings.memory, processes=max(1, (os.cpu_count() or 1) // settings.threads))
        extractor = FeatureExtractor(settings.model, **settings.extractor_options)
        if extractor.precision != (wanted := settings.extractor_options["precision"]):  # rows would be of two kinds
            raise UsageError(f"a machine of this cluster would emulate {wanted}: extract in {extractor.precision}")
        if settings.quantized is not None:
            extractor.use_quantized(settings.quantized)
        batch_size, halve = choose_batch_size(settings.batch_size, extractor)
        self.extractor = PartExtractor(
            extractor=extractor,
            schema=settings.schema,
            dtype=settings.dtype,
            decoding=settings.decoding,
            batch_size=batch_size,
            halve=halve,
            pool=ThreadPoolExecutor(settings.threads),
            ahead=settings.ahead,
            limit=FailureLimit(),
            stop=StopRequest(),
            advance=lambda _: None,
        )

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for part in rows["part"].tolist():
            record = self.plan.read_record(part)  # an actor may have been killed right after it recorded this part
            if record is None or not record.finished:
                self.extractor.extract_part(self.plan, part, record)
        return rows


def extract_with_ray(job: ExtractJob, plan: Plan) -> int:
    """Extract all parts that are left, one actor for each GPU, or for each CPU but one; return the positions processed."""
    ray = _import_ray()
    if plan.parts is None:
        raise UsageError(f"input {job.input.images!r}: its length is not known, so its parts cannot be distributed")
    records = plan.read_records()
    limit = job.failure_limit()
    limit.count_earlier(records.values())
    before = sum(record.reached - record.start for record in records.values())
    parts = [{"part": part} for part in plan.parts_left(records, Ranks())]
    if not parts:
        return 0
    _start_quietly(ray)
    with progress_bar("extracting", plan.positions_left(records, Ranks()), job.unit) as advance:
        results = _map_parts(ray, parts, _collect_settings(job, plan))
        with stop_on_signal() as stop:
            for row in results.iter_rows():
                record = plan.read_record(row["part"])
                if record is None:
                    raise OutputError(f"part {row['part']} is not in {str(job.out)!r}: all machines must see the same folder")
                limit.add(record.reached - record.start, record.failures)
                advance(record.reached - record.start)
                if stop:
                    raise plan.interruption(stop)
    limit.check_end()
    return sum(record.reached - record.start for record in plan.read_records().values()) - before


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f"--engine ray needs Ray: pip install 'densefeat[ray]' ({error})") from error
    return ray


def _start_quietly(ray: Any) -> None:
    """Start Ray here, or join the cluster that RAY_ADDRESS names, without its progress bars, which would overwrite ours."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="WARNING")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _collect_settings(job: ExtractJob, plan: Plan) -> ActorSettings:
    extractor = job.extractor
    options = {
        "blocks": extractor.blocks,
        "pool": extractor.pool,
        "tap": extractor.tap,
        "precision": extractor.precision,
        "image_size": extractor.image_size,
        "decoder": extractor.decoder,
        "backend": extractor.backend,
        "device": "cuda" if extractor.device.type == "cuda" else "cpu",
    }
    model = deepcopy(extractor.model).cpu()
    threads = job.options.workers or 1
    how = job.options
    return ActorSettings(
        model, extractor.quantized, options, plan, job.schema, job.dtype, job.decoding, how.batch_size, threads, job.ahead,
        how.memory,
    )  # fmt: skip


def _map_parts(ray: Any, parts: list[dict[str, int]], settings: ActorSettings) -> Any:
    """Send the parts through a pool of actors. Ray restarts an actor that died, and gives its part to another."""
    resources = ray.cluster_resources()
    gpu = settings.extractor_options["device"] == "cuda"
    actors = int(resources.get("GPU", 0)) if gpu else int(resources["CPU"]) - 1  # Ray's own readers need a CPU
    actors = max(1, min(actors, len(parts)))
    return ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        PartActor,
        fn_constructor_args=(settings,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=None if gpu else 1,
        num_gpus=1 if gpu else None,
    )
