"""What a process sets up to extract parts: threads, batch size, signals, progress."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from densefeat.base import progress_bar, stop_on_signal
from densefeat.extraction.forward import choose_batch_size
from densefeat.extraction.part import PartExtractor
from densefeat.extraction.settings import Job


@contextmanager
def running(job: Job, total: int | None) -> Iterator[PartExtractor]:
    """``total``: positions that this process will go through, if known."""
    batch_size, halve = choose_batch_size(job.options.batch_size, job.extractor)
    with (
        stop_on_signal() as stop,
        _decoding_threads(job.threads) as pool,
        progress_bar("extracting", total, job.unit, show=job.ranks.rank == 0) as advance,
    ):
        yield PartExtractor(
            job.extractor, job.schema, job.dtype, job.decoding, batch_size, halve, pool, job.ahead, job.limit(), stop, advance
        )


@contextmanager
def _decoding_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that on an error drops what it has not begun, so that a second Ctrl-C need not wait for a batch."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="densefeat-decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
