"""The job: from a stream of images to a store of embeddings. Wrong use is told here, before any image is read."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from densefeat.base import Ranks, check_target
from densefeat.errors import BackendError, OutputError, UsageError
from densefeat.extraction.folder import extract_folder
from densefeat.extraction.limits import FailureLimit
from densefeat.extraction.plan import Input
from densefeat.extraction.settings import ExtractResult, Job, Options
from densefeat.extraction.single import extract_single
from densefeat.extraction.tiling import Tiling
from densefeat.features import FeatureExtractor
from densefeat.images import MAX_PIXELS, open_source, printable_key
from densefeat.store import DTYPES, Layout, check_folder, is_embeddings, read_manifest

_ENGINES = ("local", "ray")


def extract(
    images: str | Path,
    out: str | Path,
    model: str | nn.Module = "densefeat_densenet121",
    weights: str | Path | None = None,
    blocks: str | int | Sequence[int] = "all",
    tap: str = "norm",
    pool: str | Sequence[str] = "avg",
    batch_size: int | str = 32,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    image_size: int | None = None,
    *,
    dtype: str = "float32",
    decoder: str = "torchvision",
    labels: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    base: str | Path | None = None,
    follow_links: bool = False,
    tile: int | None = None,
    stride: int | None = None,
    min_content: float = 0.0,
    max_pixels: int = MAX_PIXELS,
    part_rows: int | None = None,
    on_error: str = "skip",
    max_failures: str | int | None = None,
    overwrite: bool = False,
    update: bool = False,
    engine: str = "local",
    backend: str = "auto",
) -> ExtractResult:
    """Embeddings of a stream of images to a store, one row an image (or tile), in the order of the input.

    ``out`` names a folder, which the same call continues after an interruption, or a single file if it ends in ``.parquet``,
    which appears when all is done. Columns: ``path`` (the image's key), ``label`` if there are any, ``width`` and ``height``
    (of the upright image), ``x`` and ``y`` of a tile, and a FixedSizeList for each feature. An image without a row has an entry
    in ``out/failures.parquet``, or ``OUT.failures.jsonl`` beside a single file.

    Args:
        images, labels, label_column, image_column, base, follow_links: As in :func:`densefeat.images.sources.open_source`.
        out: The folder, or file; a file that exists is replaced at the end.
        batch_size: Images a pass; ``"auto"``: what fits and pays, halved where memory runs out.
        workers: Threads that read and decode; None: one for every core.
        dtype: Of the stored vectors, ``"float32"`` or ``"float16"``.
        decoder: ``"torchvision"``, or ``"pillow"`` for bit-equality with timm's evaluation transform.
        tile, stride, min_content: Cut images into squares of ``tile`` pixels, ``stride`` apart (None: ``tile``), leaving out
            those of which less than ``min_content`` (0 to 1) is neither nearly white nor nearly black.
        max_pixels: Of an image that has to be decoded whole.
        part_rows: Input positions for each file of a folder; None: 8192. Fewer where they would make more than 256 MB.
        on_error: ``"fail"``: stop at the first failure. max_failures: stop beyond a number (``20``) or share (``"5%"``).
        overwrite: Start over where the folder holds a store. update: extract what was added to the input since.
        engine: ``"ray"``: spread the parts over a Ray cluster.
        backend: As in :class:`densefeat.FeatureExtractor`; ``"auto"`` keeps what a folder was begun with.
        model, weights, blocks, tap, pool, device, precision, image_size: As in :class:`densefeat.FeatureExtractor`.

    Raises:
        UsageError: Wrong arguments, no images, or a folder made with other settings or of other images.
        WeightsError: no weights. OutputError: ``out`` cannot be written. TooManyFailures: as asked.
        Interrupted: After Ctrl-C or SIGTERM, with everything saved; a KeyboardInterrupt.
    """
    began = time.monotonic()
    out = Path(out)
    _check_choices(batch_size, workers, part_rows, max_pixels, dtype, engine)
    FailureLimit.parse(on_error, max_failures)
    ranks = Ranks.of_environment()
    single = out.suffix == ".parquet" and not out.is_dir()
    if single and (update or part_rows or ranks.world > 1 or engine == "ray"):
        raise UsageError(
            f"output {str(out)!r} is a single file: --update, --part-rows, several processes and --engine ray need a folder"
        )
    if overwrite and update:
        raise UsageError("--overwrite starts over, --update adds to what is there: give one of them")
    if engine == "ray" and ranks.world > 1:
        raise UsageError("--engine ray under torchrun: use one of them")
    if single:
        _check_single(out, images, overwrite)
    else:
        check_folder(Layout(out))
    tiling = Tiling(tile, stride, min_content, max_pixels)
    reading: dict[str, Any] = {
        "labels": labels,
        "label_column": label_column,
        "image_column": image_column,
        "base": None if base is None else str(base),
        "follow_links": follow_links,
    }
    given = Input(_place_of(images), reading, open_source(images, **reading), tiling)
    where = ranks.device(device)
    kept = _begun_with(Layout(out)) if backend == "auto" and not single and not overwrite else None
    try:
        extractor = FeatureExtractor(model, blocks, pool, tap, weights, where, precision, image_size, decoder, kept or backend)
    except BackendError as error:
        begun = f"; {str(out)!r} was begun with it, --overwrite starts over" if kept else ""
        raise BackendError(f"{error}{begun}") from error
    options = Options(batch_size, workers, on_error, max_failures, overwrite, update, engine)
    job = Job(out, given, extractor, extractor.feature_shapes(), dtype, part_rows, options, ranks)
    result = extract_single(job) if single else extract_folder(job)
    return replace(result, seconds=time.monotonic() - began)


def _check_choices(
    batch_size: int | str, workers: int | None, part_rows: int | None, max_pixels: int, dtype: str, engine: str
) -> None:
    if isinstance(batch_size, str) and batch_size != "auto":
        raise UsageError(f"batch size {batch_size!r}: a number or auto")
    for name, value in (("batch size", batch_size), ("workers", workers), ("part rows", part_rows), ("max pixels", max_pixels)):
        if isinstance(value, int) and value < 1:
            raise UsageError(f"{name} {value}: at least 1")
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if engine not in _ENGINES:
        raise UsageError(f"engine {engine!r}: choose one of {', '.join(_ENGINES)}")


def _begun_with(layout: Layout) -> str | None:
    """The backend that made a folder's rows; None where there are none."""
    manifest = read_manifest(layout)
    return None if manifest is None else manifest.settings["backend"]


def _check_single(out: Path, images: str | Path, overwrite: bool) -> None:
    """Raise OutputError where the file cannot be written, or would replace something else than embeddings."""
    check_target(out)
    if not out.exists():
        return
    if os.path.exists(images) and out.samefile(images):
        raise OutputError(f"output {str(out)!r} is the input: give another name")
    if not overwrite and not is_embeddings(out):
        raise OutputError(f"output {str(out)!r} is there, and no file of embeddings: give another name, or --overwrite")


def _place_of(images: str | Path) -> str:
    """For the record: absolute where it is on this machine, printable."""
    text = os.fspath(images)
    return printable_key(text if "://" in text or text.startswith("hf:") else os.path.abspath(text))
