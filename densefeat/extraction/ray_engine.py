"""The same job on Ray Data: parts are its rows, and each actor of a pool extracts whole parts into the shared folder.

A part is begun, written and recorded as in the local engine, so a killed actor's part is simply done again, and the store is
the same. (Ray's own readers hand out files in an order of their own, and fail the whole job for one that cannot be read.)
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from densefeat.base import Ranks, StopRequest, progress_bar, stop_on_signal
from densefeat.errors import OutputError, UsageError
from densefeat.extraction.forward import choose_batch_size
from densefeat.extraction.limits import FailureLimit
from densefeat.extraction.part import PartExtractor, extract_part
from densefeat.extraction.pipeline import Decoding
from densefeat.extraction.plan import Plan, interrupted
from densefeat.extraction.settings import Job
from densefeat.features import FeatureExtractor


@dataclass
class Shared:
    """What every actor gets."""

    model: nn.Module  # on the CPU
    extractor_options: dict[str, Any]
    plan: Plan
    schema: pa.Schema
    dtype: str
    decoding: Decoding
    batch_size: int | str
    threads: int
    ahead: int


class PartActor:
    """Holds the network; called with part numbers, extracts them."""

    def __init__(self, shared: Shared) -> None:
        self.plan = shared.plan
        extractor = FeatureExtractor(shared.model, **shared.extractor_options)
        batch_size, halve = choose_batch_size(shared.batch_size, extractor)
        self.run = PartExtractor(
            extractor=extractor,
            schema=shared.schema,
            dtype=shared.dtype,
            decoding=shared.decoding,
            batch_size=batch_size,
            halve=halve,
            pool=ThreadPoolExecutor(shared.threads),
            ahead=shared.ahead,
            limit=FailureLimit(),
            stop=StopRequest(),
            advance=lambda _: None,
        )

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        plan = self.plan
        for part in rows["part"].tolist():
            begun = plan.record(part)  # what an actor that was killed after recording it had done
            if begun is None or not begun.finished:
                extract_part(self.run, plan.source, plan.layout, plan.manifest.round_id, part, *plan.range_of(part), begun)
        return rows


def extract_with_ray(job: Job, planned: Plan) -> int:
    """All parts that are left, by a pool of actors: one for each GPU, or for each CPU but one; returns the positions done."""
    ray = _import_ray()
    if planned.parts is None:
        raise UsageError(f"input {job.given.images!r}: its length is not known, so that it cannot be shared out")
    records = planned.records()
    limit = job.limit()
    limit.count_earlier(records.values())
    before = sum(record.reached - record.start for record in records.values())
    parts = [{"part": part} for part in planned.to_do(records, Ranks())]
    if not parts:
        return 0
    _quieten(ray)
    with progress_bar("extracting", planned.positions_left(records, Ranks()), job.unit) as advance:
        results = _mapped(ray, parts, _shared_of(job, planned))
        with stop_on_signal() as stop:
            for row in results.iter_rows():
                record = planned.record(row["part"])
                if record is None:
                    raise OutputError(f"part {row['part']} is not in {str(job.out)!r}: do all machines see the same folder?")
                limit.add(record.reached - record.start, record.failures)
                advance(record.reached - record.start)
                if stop:
                    raise interrupted(planned, stop)
    limit.check_end()
    return sum(record.reached - record.start for record in planned.records().values()) - before


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f"--engine ray needs Ray: pip install 'densefeat[ray]' ({error})") from error
    return ray


def _quieten(ray: Any) -> None:
    """Start Ray here, or join the cluster that RAY_ADDRESS names; its own progress bars would lie over ours."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="WARNING")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _shared_of(job: Job, planned: Plan) -> Shared:
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
    return Shared(model, options, planned, job.schema, job.dtype, job.decoding, job.options.batch_size, threads, job.ahead)


def _mapped(ray: Any, parts: list[dict[str, int]], shared: Shared) -> Any:
    """The parts through a pool of actors. Ray restarts an actor that died, and gives its part out again."""
    resources = ray.cluster_resources()
    gpu = shared.extractor_options["device"] == "cuda"
    actors = int(resources.get("GPU", 0)) if gpu else int(resources["CPU"]) - 1  # Ray's own readers need a CPU
    actors = max(1, min(actors, len(parts)))
    return ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        PartActor,
        fn_constructor_args=(shared,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=None if gpu else 1,
        num_gpus=1 if gpu else None,
    )
