"""From a folder of images to a Parquet file of embeddings."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch import nn

from densefeat.errors import UsageError
from densefeat.extract.loader import Batch, Failure, default_workers, load_batches
from densefeat.extract.progress import progress_bar
from densefeat.features.extractor import FeatureExtractor
from densefeat.images.sources import find_images
from densefeat.store.atomic import atomic_file, written
from densefeat.store.writer import EmbeddingWriter, embedding_schema
from densefeat.version import __version__


@dataclass(frozen=True)
class ExtractResult:
    """What :func:`extract` wrote. ``shapes``: of one image's feature, by column name."""

    path: Path
    failures_path: Path
    rows: int
    failures: int
    shapes: dict[str, tuple[int, ...]]
    seconds: float


def extract(
    images: str | Path,
    out: str | Path,
    model: str | nn.Module = "densefeat_densenet121",
    weights: str | Path | None = None,
    blocks: str | int | Sequence[int] = "all",
    tap: str = "norm",
    pool: str | Sequence[str] = "avg",
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    image_size: int | None = None,
) -> ExtractResult:
    """Embeddings of all images below a folder to a Parquet file, one row an image, in the order of their paths.

    Columns: ``path`` (relative to ``images``, forward slashes), ``width`` and ``height`` (of the upright image), and a
    FixedSizeList<float32> for each feature. What made them stands as JSON under ``densefeat`` in the schema's metadata. An
    image without a row has a line in ``OUT.failures.jsonl`` (path, stage, reason). Both files appear when all is done.

    Args:
        images: The folder.
        out: The Parquet file; one that exists is replaced at the end.
        batch_size: Images a pass.
        workers: Processes that decode ahead; None: as many as pay beside the device, 0: none.
        model, weights, blocks, tap, pool, device, precision, image_size: As in :class:`densefeat.FeatureExtractor`.

    Raises:
        UsageError: Wrong arguments, no images. WeightsError: no weights. OutputError: ``out`` cannot be written.
            All before any image is read, but for a disk that fills up.
    """
    began = time.monotonic()
    if batch_size < 1 or (workers is not None and workers < 0):
        raise UsageError(f"batch size {batch_size}, workers {workers}: at least 1 and 0")
    out = Path(out)
    failures_path = out.with_name(out.name.removesuffix(".parquet") + ".failures.jsonl") if out.name else out
    files = find_images(images)
    with atomic_file(out) as rows_file, atomic_file(failures_path) as failures_file:
        extractor = FeatureExtractor(model, blocks, pool, tap, weights, device, precision, image_size)
        shapes = extractor.feature_shapes()
        schema = embedding_schema(shapes, provenance(extractor))
        processes = default_workers(extractor.device) if workers is None else workers
        processes = min(processes, -(-len(files) // batch_size))
        batches = load_batches(files, batch_size, extractor.preprocessing, processes)
        with (
            EmbeddingWriter(rows_file, schema) as writer,
            open(failures_file, "w", encoding="utf-8") as failures_lines,
            progress_bar("extracting", len(files)) as advance,
        ):
            failed = 0
            for batch in batches:
                failures = write_rows(batch, extractor, writer)
                with written(failures_path):
                    write_failures(failures, failures_lines)
                failed += len(failures)
                advance(len(batch.keys) + len(batch.failures))
    return ExtractResult(out, failures_path, writer.rows, failed, shapes, time.monotonic() - began)


def provenance(extractor: FeatureExtractor) -> dict[str, Any]:
    """What made the embeddings, for the file's metadata."""
    return {
        "densefeat": __version__,
        **extractor.provenance,
        "preprocessing": extractor.preprocessing.to_json(),
        "blocks": [tap.name for tap in extractor.taps],
        "tap": extractor.tap,
        "pool": extractor.pool,
        "precision": extractor.precision,
    }


def write_rows(batch: Batch, extractor: FeatureExtractor, writer: EmbeddingWriter) -> list[Failure]:
    """Run the network on a batch and append its rows; returns the batch's failures, embeddings with NaN or inf among them."""
    if batch.pixels is None:
        return batch.failures
    pixels = batch.pixels.to(extractor.device, non_blocking=True)
    tensors = extractor.forward(extractor.preprocessing.normalize(pixels))
    features = {name: value.cpu().numpy() for name, value in tensors.items()}
    finite = np.all([np.isfinite(value).reshape(len(value), -1).all(1) for value in features.values()], axis=0)
    good = np.flatnonzero(finite)
    writer.append(
        [batch.keys[i] for i in good],
        [batch.sizes[i] for i in good],
        {name: value[good] for name, value in features.items()} if len(good) < len(finite) else features,
    )
    bad = [Failure(batch.keys[i], "network", "an embedding that is not finite") for i in np.flatnonzero(~finite)]
    return batch.failures + bad


def write_failures(failures: Iterable[Failure], lines: TextIO) -> None:
    for failure in failures:
        lines.write(json.dumps(asdict(failure)) + "\n")
