"""To a folder of parts: each process its own share of them, rank 0 begins and closes."""

import time
from collections.abc import Iterator

from densefeat.base import Ranks, StopRequest, hold_lock, output_errors
from densefeat.errors import UsageError
from densefeat.extraction.part import PartExtractor, extract_part
from densefeat.extraction.plan import Plan, finish, interrupted, join, plan
from densefeat.extraction.running import running
from densefeat.extraction.settings import ExtractResult, Job
from densefeat.store import Layout, PartRecord, count_failures, finished_parts, read_manifest

_POLL_SECONDS = 0.5


def extract_folder(job: Job) -> ExtractResult:
    """Begin or continue the store at ``job.out``; with several processes, this one's share of it."""
    layout = Layout(job.out)
    with output_errors(layout.root):
        layout.root.mkdir(parents=True, exist_ok=True)
    rank = job.ranks.rank
    with hold_lock(layout.rank_lock(rank) if rank else layout.lock):
        planned = None if rank else _begun(job, layout)
        with job.ranks.ready():
            if rank:
                planned = join(layout, job.given, job.settings)
            extracted = _extract_share(job, planned) if planned else 0
        if planned and not rank:
            finish(planned, job.given)
    return _result(job, layout, extracted)


def _begun(job: Job, layout: Layout) -> Plan | None:
    """The folder prepared; None where nothing is left to do."""
    planned = plan(layout, job.given, job.settings, job.provenance, job.options.overwrite, job.options.update)
    if planned and planned.parts is None and job.ranks.world > 1:
        raise UsageError(f"input {job.given.images!r}: its length is not known, one process has to read it all")
    return planned


def _extract_share(job: Job, planned: Plan) -> int:
    """This process's parts, then on rank 0 the wait for the others'; returns the positions gone through."""
    if job.options.engine == "ray":
        from densefeat.extraction.ray_engine import extract_with_ray

        return extract_with_ray(job, planned)
    records = planned.records()
    mine = [record for record in records.values() if planned.belongs(record.part, job.ranks)]
    with running(job, planned.positions_left(records, job.ranks)) as run:
        run.limit.count_earlier(mine)
        extracted = sum(_extract_parts(run, planned, records, planned.to_do(records, job.ranks)))
        run.limit.check_end()
        if job.ranks.rank == 0:
            _wait_for_others(planned, run.stop)
    return extracted


def _extract_parts(run: PartExtractor, planned: Plan, records: dict[int, PartRecord], parts: Iterator[int]) -> Iterator[int]:
    """Yields the positions gone through for each part; raises Interrupted when asked to stop."""
    for part in parts:
        if run.stop:
            raise interrupted(planned, run.stop)
        start, stop = planned.range_of(part)
        begun = records.get(part)
        record = extract_part(run, planned.source, planned.layout, planned.manifest.round_id, part, start, stop, begun)
        yield record.reached - (begun.reached if begun else start)
        if not record.finished:
            raise interrupted(planned, run.stop)
        if record.reached < stop:
            return  # the end of a stream of unknown length


def _wait_for_others(planned: Plan, stop: StopRequest) -> None:
    """Until every part has its record, whichever process it is of."""
    missing = list(planned.to_do(planned.records(), Ranks()))
    while missing and planned.parts is not None:
        if stop:
            raise interrupted(planned, stop)
        time.sleep(_POLL_SECONDS)
        if not any(not planned.layout.part(part).exists() for part in missing):
            missing = list(planned.to_do(planned.records(), Ranks()))


def _result(job: Job, layout: Layout, extracted: int) -> ExtractResult:
    """What the store has now; on ranks other than 0 it may not be closed yet."""
    manifest = read_manifest(layout)
    records = finished_parts(layout, manifest) if manifest else []
    return ExtractResult(
        path=job.out,
        failures_path=layout.failures,
        rows=sum(record.rows for record in records),
        failures=count_failures(layout),
        shapes=job.shapes,
        extracted=extracted,
        skipped=sum(record.skipped for record in records),
        removed=manifest.removed if manifest else 0,
    )
