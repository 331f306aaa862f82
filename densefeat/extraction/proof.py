"""A faster backend for a long job, where one can prove itself on images of the job's own input."""

from dataclasses import replace

from densefeat.extraction.plan import has_nothing
from densefeat.extraction.samples import choose_evenly
from densefeat.extraction.settings import ExtractJob
from densefeat.store import Layout, read_manifest

_LONG = 2_000  # images: for fewer, tracing and compiling may take longer than they save
_IMAGES = 8  # as many as go through the plain network in one pass on a CPU


def prove_backend(job: ExtractJob, layout: Layout | None) -> ExtractJob:
    """Return the job with the figures of the backends that were tried; its extractor then uses the fastest that is right.

    ``layout``: None for a single file. A folder with rows keeps their backend.
    """
    current = None if layout is None or job.options.overwrite else read_manifest(layout)
    if layout is not None and current is not None and not has_nothing(layout, current):
        return replace(job, trials=current.provenance.get("trials"))
    if not job.extractor.has_candidates:
        return job  # before the tiles of all images are counted
    source = job.input.tiling.cut(job.input.listing)
    if not source.length or source.length < _LONG:
        return job
    keys, images = choose_evenly(job.input.images, source, source.length, _IMAGES).read(job)
    if not keys:
        return job
    trials = [trial.to_json() for trial in job.extractor.prove(images)]
    job.extractor.network.keep_backend()  # all rows come from one
    return replace(job, trials=trials)
