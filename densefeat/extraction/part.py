"""One part of the output: a run of input positions to rows of a Parquet file."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import StopRequest, atomic_file
from densefeat.errors import DensefeatError
from densefeat.extraction.forward import run_network
from densefeat.extraction.limits import FailureLimit, TooManyFailures
from densefeat.extraction.pipeline import Batch, Decoding, decoded_batches
from densefeat.features import FeatureExtractor
from densefeat.images import Item, Source
from densefeat.store import EmbeddingWriter, Failure, Layout, PartRecord, finish_part


@dataclass
class PartOutcome:
    """What became of the positions of one call."""

    positions: int = 0
    skipped: int = 0
    failures: list[Failure] = field(default_factory=list)
    too_many: TooManyFailures | None = None  # in the batch that is not counted here any more


@dataclass
class PartExtractor:
    """All that the parts of one process have in common."""

    extractor: FeatureExtractor
    schema: pa.Schema
    dtype: str
    decoding: Decoding
    batch_size: int
    halve: bool  # batches that do not fit into memory
    pool: ThreadPoolExecutor
    ahead: int
    limit: FailureLimit
    stop: StopRequest
    advance: Callable[[int], None]

    def append_rows(self, items: Iterator[Item], writer: EmbeddingWriter) -> PartOutcome:
        """Until the items end or a stop is asked for; whole batches only."""
        done = PartOutcome()
        with (
            closing(decoded_batches(items, self.batch_size, self.decoding, self.pool, self.ahead)) as batches,
            closing(run_network(batches, self.extractor, self.dtype, self.halve)) as results,
        ):
            for batch, features in results:
                try:
                    self.limit.add(batch.positions, batch.failures)
                except TooManyFailures as error:
                    done.too_many = error
                    break
                if batch.items:
                    writer.append(_plain_columns(batch, self.schema), features)
                done.positions += batch.positions
                done.skipped += batch.skipped
                done.failures += batch.failures
                self.advance(batch.positions)
                if self.stop:
                    break
        return done


def _plain_columns(batch: Batch, schema: pa.Schema) -> dict[str, Sequence[Any]]:
    columns: dict[str, Sequence[Any]] = {
        "path": [item.key for item in batch.items],
        **{name: [getattr(image, name) for image in batch.images] for name in ("width", "height")},
    }
    if "label" in schema.names:
        columns["label"] = [item.label for item in batch.items]
    if "x" in schema.names:
        columns |= {name: [getattr(image, name) for image in batch.images] for name in ("x", "y")}
    return columns


def extract_part(
    run: PartExtractor,
    source: Source,
    layout: Layout,
    round_id: str,
    part: int,
    start: int,
    stop: int,
    begun: PartRecord | None,
) -> PartRecord:
    """Extract positions ``start`` to ``stop`` as part number ``part``, from where ``begun`` left it; returns its record.

    On a stop request, and before the batch with too many failures, the rows so far are kept and recorded; a process that dies
    leaves the part to be done again.
    """
    file = layout.unfinished(part)
    with atomic_file(file) as beside, ExitStack() as stack:
        writer = stack.enter_context(EmbeddingWriter(beside, run.schema, shown=layout.part(part)))
        if begun and not _copy_rows(file, writer):
            stack.close()
            begun, writer = None, stack.enter_context(EmbeddingWriter(beside, run.schema, shown=layout.part(part)))
        first = begun.reached if begun else start
        done = run.append_rows(source.items(first, stop), writer)
    reached = first + done.positions
    if reached < stop and not run.stop and not done.too_many:
        if source.length is not None:
            raise DensefeatError(f"the input ended after {reached} of {source.length} positions: it changed meanwhile")
        stop = reached
    record = PartRecord(
        part,
        start,
        reached,
        stop,
        rows=writer.rows,
        bytes=0,  # as finish_part finds it
        skipped=done.skipped + (begun.skipped if begun else 0),
        failures=(*(begun.failures if begun else ()), *done.failures),
    )
    finish_part(layout, round_id, record)
    if done.too_many:
        raise done.too_many
    return record


def _copy_rows(file: Path, writer: EmbeddingWriter) -> bool:
    """Of an unfinished part; False where it cannot be continued: a disk that filled up or died may have hurt any of it."""
    try:
        with pq.ParquetFile(file) as unfinished:
            for batch in unfinished.iter_batches():
                writer.append_batch(batch)
    except (OSError, pa.ArrowException):
        return False
    return True
