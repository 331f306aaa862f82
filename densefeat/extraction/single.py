"""To a single Parquet file, for the small case: it appears when all is done, with its failures beside it."""

import json
from dataclasses import asdict

from densefeat.base import Interrupted, atomic_file, output_errors
from densefeat.extraction.running import running
from densefeat.extraction.settings import ExtractResult, Job
from densefeat.store import EmbeddingWriter, failures_file


def extract_single(job: Job) -> ExtractResult:
    """All of the input to ``job.out``; the failures file is always written, so that no older one stands beside new rows."""
    failures_path = failures_file(job.out)
    with atomic_file(job.out) as rows_file, atomic_file(failures_path) as failures_beside:
        source = job.given.view(job.given.listing)
        with running(job, source.length) as run:
            with EmbeddingWriter(rows_file, job.schema, shown=job.out) as writer:
                done = run.append_rows(source.items(0, source.length or 2**62), writer)
            if done.too_many:
                raise done.too_many
            if run.stop:
                raise Interrupted("interrupted, nothing was written", run.stop.exit_code)
            run.limit.check_end()
        with output_errors(failures_path), open(failures_beside, "w", encoding="utf-8") as lines:
            for failure in done.failures:
                told = {name: value for name, value in asdict(failure).items() if value is not None}
                lines.write(json.dumps(told, ensure_ascii=False) + "\n")
    failed = len(done.failures)
    return ExtractResult(job.out, failures_path, writer.rows, failed, job.shapes, done.positions, done.skipped)
