"""From positions of the input to rows of a Parquet file: the batches of one part, decoded, embedded and written."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from densefeat.base import StopRequest, atomic_file, printable, progress_bar, stop_on_signal
from densefeat.errors import DensefeatError, OutputError
from densefeat.extraction.batches import Batch, Decoding, choose_batch_size, decode_batches, embed_batches
from densefeat.extraction.limits import FailureLimit, TooManyFailures
from densefeat.extraction.plan import Plan
from densefeat.extraction.settings import ExtractJob
from densefeat.features import FeatureExtractor
from densefeat.images import Item, printable_key
from densefeat.store import CheckedFile, EmbeddingWriter, Failure, PartRecord, save_part

_log = logging.getLogger(__name__)
_KEYS_SHOWN = 3
_RANGES_SHOWN = 5
_ROWS_COPIED = 1024  # at a time


@dataclass
class RowCounts:
    """The counts of a range of input positions."""

    positions: int = 0
    skipped: int = 0
    failures: list[Failure] = field(default_factory=list)
    too_many: TooManyFailures | None = None  # raised by the batch after the last one that is counted here


@dataclass
class RowRemarks:
    """What has to be said of images that have rows.

    ``several``: files that have more pages or frames than the one that a row is of, and the ``keys`` of some; ``empty``: tiles
    that are white because their file has no pixels for them; ``missing``: rows of images in which pixels have no data;
    ``bad_profiles``: rows of images whose colour profile cannot be used; ``ranges``: rows by what became black and white in
    them.
    """

    several: int = 0
    keys: list[str] = field(default_factory=list)
    empty: int = 0
    missing: int = 0
    bad_profiles: int = 0
    ranges: Counter[str] = field(default_factory=Counter)

    def add(self, batch: Batch) -> None:
        keys = [item.key for item, image in zip(batch.items, batch.images, strict=True) if image.several]
        self.several += len(keys)
        self.keys += keys[: _KEYS_SHOWN - len(self.keys)]
        self.empty += sum(image.empty for image in batch.images)
        self.missing += sum(image.missing for image in batch.images)
        self.bad_profiles += sum(image.bad_profile for image in batch.images)
        self.ranges.update(image.range for image in batch.images)

    def warn(self) -> None:
        """Log one line for each kind, if there are any."""
        if self.several:
            names = ", ".join(printable(printable_key(key)) for key in self.keys) + (
                ", …" if self.several > len(self.keys) else ""
            )
            _log.warning("the first of several pages or frames was taken of %s files: %s", f"{self.several:,}", names)
        if self.empty:
            _log.warning("%s tiles are empty in their files, and white: --min-content leaves them out", f"{self.empty:,}")
        if self.missing:
            _log.warning("%s images have pixels without data (NaN, infinity, or nodata): these are black", f"{self.missing:,}")
        if self.bad_profiles:
            text = "%s images have a colour profile that cannot be used: their colours are as they are stored"
            _log.warning(text, f"{self.bad_profiles:,}")
        if len(self.ranges) > 1:
            kinds = "; ".join(f"{count:,} of {name}" for name, count in self.ranges.most_common(_RANGES_SHOWN))
            more = "; …" if len(self.ranges) > _RANGES_SHOWN else ""
            _log.warning("images of different ranges, each black to white: %s%s", kinds, more)


@dataclass
class PartExtractor:
    """The things that a process needs to extract parts, the same for all of them."""

    extractor: FeatureExtractor
    schema: pa.Schema
    dtype: str
    decoding: Decoding
    batch_size: int
    halve: bool  # split a batch that does not fit into memory
    pool: ThreadPoolExecutor
    ahead: int
    limit: FailureLimit
    stop: StopRequest
    advance: Callable[[int], None]
    remarks: RowRemarks = field(default_factory=RowRemarks)

    def extract_part(self, plan: Plan, part: int, record: PartRecord | None) -> PartRecord:
        """Extract one part of the plan, from where its ``record`` says that an earlier run stopped; return its new record.

        On a stop request, and before the batch that has too many failures, the rows so far are kept and recorded. A process
        that dies leaves the part as it was before the call.
        """
        start, stop = plan.part_range(part)
        file = plan.layout.unfinished(part)
        with atomic_file(file) as beside, ExitStack() as stack:
            writer = stack.enter_context(EmbeddingWriter(beside, self.schema, error_path=plan.layout.part(part)))
            if record and not _copy_rows(record, file, writer):
                stack.close()
                record, writer = (
                    None,
                    stack.enter_context(EmbeddingWriter(beside, self.schema, error_path=plan.layout.part(part))),
                )
            first = record.reached if record else start
            counts = self.append_rows(plan.source.items(first, stop), writer)
        reached = first + counts.positions
        if reached < stop and not self.stop and not counts.too_many:
            if plan.source.length is not None:
                raise DensefeatError(f"the input ended after {reached} of {plan.source.length} positions: it changed meanwhile")
            stop = reached
        result = PartRecord(
            part,
            start,
            reached,
            stop,
            rows=writer.rows,
            bytes=0,  # save_part fills it in
            skipped=counts.skipped + (record.skipped if record else 0),
            failures=(*(record.failures if record else ()), *counts.failures),
        )
        save_part(plan.layout, plan.manifest.round_id, result)
        if counts.too_many:
            raise counts.too_many
        return result

    def append_rows(self, items: Iterator[Item], writer: EmbeddingWriter) -> RowCounts:
        """Write the rows of whole batches, until the items end, a stop is requested, or too many have failed."""
        counts = RowCounts()
        with (
            closing(decode_batches(items, self.batch_size, self.decoding, self.pool, self.ahead)) as batches,
            closing(embed_batches(batches, self.extractor, self.dtype, self.halve)) as results,
        ):
            for batch, features in results:
                try:
                    self.limit.add(batch.positions, batch.failures)
                except TooManyFailures as error:
                    counts.too_many = error
                    break
                if batch.items:
                    writer.append(_collect_plain_columns(batch, self.schema, self.decoding.dicom_tags), features)
                counts.positions += batch.positions
                counts.skipped += batch.skipped
                counts.failures += batch.failures
                self.remarks.add(batch)
                self.advance(batch.positions)
                if self.stop:
                    break
        return counts


@contextmanager
def open_part_extractor(job: ExtractJob, total: int | None) -> Iterator[PartExtractor]:
    """Set up signals, threads and progress for this process. ``total`` is the number of positions it will process, if known."""
    batch_size, halve = choose_batch_size(job.options.batch_size, job.extractor)
    with (
        stop_on_signal() as stop,
        _decoding_threads(job.threads) as pool,
        progress_bar("extracting", total, job.unit, show=job.ranks.rank == 0) as advance,
    ):
        extractor = PartExtractor(
            extractor=job.extractor,
            schema=job.schema,
            dtype=job.dtype,
            decoding=job.decoding,
            batch_size=batch_size,
            halve=halve,
            pool=pool,
            ahead=job.ahead,
            limit=job.failure_limit(),
            stop=stop,
            advance=advance,
        )
        yield extractor
    extractor.remarks.warn()


@contextmanager
def _decoding_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Start threads; after an error, drop the tasks that have not started, so that a second Ctrl-C need not wait for them."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="densefeat-decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _collect_plain_columns(batch: Batch, schema: pa.Schema, dicom_tags: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Return the columns of a batch other than its features."""
    columns: dict[str, Sequence[Any]] = {
        "path": [item.key for item in batch.items],
        **{name: [getattr(image, name) for image in batch.images] for name in ("width", "height")},
    }
    if "label" in schema.names:
        columns["label"] = [item.label for item in batch.items]
    if "page" in schema.names:
        columns["page"] = [image.page for image in batch.images]
    for place, name in enumerate(dicom_tags):
        columns[name] = [image.tags[place] for image in batch.images]
    if "x" in schema.names:
        columns |= {name: [getattr(image, name) for image in batch.images] for name in ("x", "y")}
    return columns


def _copy_rows(record: PartRecord, file: Path, writer: EmbeddingWriter) -> bool:
    """Copy the rows of an unfinished part; return False if any cannot be read, since a full disk may have damaged it."""
    try:
        with CheckedFile(file, record.file_checksum) as unfinished:
            for batch in unfinished.iter_batches(_ROWS_COPIED, unfinished.schema.names):
                writer.append_batch(batch)
    except OutputError:
        return False
    return True
