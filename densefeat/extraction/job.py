"""The job of ``densefeat extract``, from the arguments to a closed store. Wrong use is reported before any image is read.

Read from top to bottom: :func:`extract` opens the source and the network; the plan says which parts are left; each part is
read, decoded, embedded and written; the manifest closes the store. One image's bytes go through ``part.py`` and ``batches.py``
beside this file.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from densefeat.base import (
    Interrupted,
    Ranks,
    StopRequest,
    atomic_file,
    check_path_name,
    choose_device,
    count_usable_cores,
    enter_after_rank_0,
    hold_lock,
    output_errors,
)
from densefeat.errors import BackendError, UsageError
from densefeat.extraction.arguments import RunOptions, check_arguments, is_single_file
from densefeat.extraction.calibration import CalibrationRequest, calibrate_job, join_calibration, keep_network
from densefeat.extraction.measured import Measuring, load_channel_stats, settle_preprocessing
from densefeat.extraction.part import PartExtractor, open_part_extractor
from densefeat.extraction.plan import Plan, close_plan, join_plan, open_plan
from densefeat.extraction.proof import prove_backend
from densefeat.extraction.ray_cluster import extract_with_ray
from densefeat.extraction.settings import ExtractJob, ExtractResult, JobInput, Tiling, describe_place
from densefeat.features import FeatureExtractor
from densefeat.images import (
    MAX_PIXELS,
    MAX_TILES,
    MEMORY,
    ChannelStats,
    PixelRule,
    open_source,
    parse_pages,
    split_tags,
)
from densefeat.store import (
    EmbeddingWriter,
    Layout,
    PartRecord,
    count_failures,
    failures_file,
    is_failure_lines,
    is_store,
    list_finished_parts,
    read_manifest,
    write_failure_lines,
)

_POLL_SECONDS = 0.5


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
    max_tiles: int = MAX_TILES,
    pages: str | int = "first",
    dicom_tags: str | Sequence[str] | None = None,
    mpp: float | None = None,
    memory: int | None = None,
    part_rows: int | None = None,
    on_error: str = "skip",
    max_failures: str | int | None = None,
    overwrite: bool = False,
    update: bool = False,
    engine: str = "local",
    backend: str = "auto",
    pixels: PixelRule | None = None,
    in_chans: int | None = None,
    channel_stats: str | Path | ChannelStats | None = None,
    calibration: str | Path | None = None,
    min_cosine: float = 0.99,
) -> ExtractResult:
    """Write the embeddings of a stream of images to a store: one row an image (or tile), in the order of the input.

    ``out`` names a folder, in which the same call resumes after an interruption, or, if it ends in ``.parquet``, a single file,
    which appears when all rows are written. Columns: ``path`` (the image's key), ``label`` if there are any, ``width`` and
    ``height`` (of the upright image), ``page`` if pages are chosen, ``x`` and ``y`` of a tile, and a FixedSizeList for each
    feature. An image without a row has an entry in ``out/failures.parquet``, or in ``OUT.failures.jsonl`` beside a single file.

    Args:
        images, labels, label_column, image_column, base, follow_links: As in :func:`densefeat.images.sources.open_source`.
        out: The folder, or file; a file that exists is replaced at the end.
        batch_size: Images a pass. ``"auto"`` finds the fastest size that fits, and halves batches when memory runs out.
        workers: Threads that read and decode; None: one for every core.
        dtype: The type of the stored vectors, ``"float32"`` or ``"float16"``.
        decoder: ``"torchvision"``, or ``"pillow"`` for bit-equality with timm's evaluation transform.
        tile, stride, min_content: Cut images into squares of ``tile`` pixels, ``stride`` apart (None: ``tile``), leaving out
            those of which less than ``min_content`` (0 to 1) is neither nearly white nor nearly black.
        max_pixels: The largest image that may be decoded whole.
        mpp: Microns a pixel of the tiles; None: each image's own. ``x``, ``y``, ``width`` and ``height`` stay in pixels of the
            image. An image that does not say its own, or is coarser, is a failure.
        max_tiles: The most tiles that an image may have.
        pages: Of files of several pages or frames: ``"first"``; ``"all"``, one row each; or the number of one, from 1.
        dicom_tags: Elements of DICOM files, by keyword or number: ``"PatientSex,Modality"``. Each is a column of texts;
            nothing else of a header is written.
        memory: Bytes that all threads together may take for decoding; None: half of what this process may take. An image that
            needs more is a failure.
        part_rows: Input positions for each file of a folder; None: 8192. Fewer where they would make more than 256 MB.
        on_error: ``"fail"`` stops at the first failure.
        max_failures: Stop beyond a number (``20``) or a share (``"5%"``) of failures.
        overwrite: Start over if the folder holds a store.
        update: Extract what was added to the input since.
        engine: The executor: ``"local"``, or ``"ray"`` to spread the parts over a Ray cluster.
        backend: As in :class:`densefeat.FeatureExtractor`; ``"auto"`` keeps the backend that a folder was started with.
        pixels: Which channels are read, and what is black and white; None: as the weights expect. Percentiles over all images
            are measured in a pass of their own, once for a store.
        in_chans: How many channels the network reads, if not as many as its weights.
        channel_stats: Mean and deviation of each channel: a JSON file, a store that was made with them, or ``"fit"``: those of
            the images, measured in a pass of their own, once for a store. None: the weights' own.
        calibration: For precision int8: images to calibrate it on, as a folder, file or table, or a store in int8 whose
            network is taken; None: 300 of the input's, chosen evenly. The network stays in the folder, for all of its rows.
        min_cosine: The least cosine, 0 to 1, in the median over images that were held out, of each block in int8 to float32.
        model, weights, blocks, tap, pool, device, precision, image_size: As in :class:`densefeat.FeatureExtractor`.

    Raises:
        UsageError: Wrong arguments, no images, or a folder with rows of other settings or other images.
        WeightsError: The weights cannot be loaded.
        OutputError: ``out`` cannot be written.
        DensefeatError: int8 falls short of ``min_cosine``.
        TooManyFailures: ``on_error`` or ``max_failures`` was exceeded; what is written stays.
        Interrupted: After Ctrl-C or SIGTERM, with everything saved. It is a KeyboardInterrupt.
    """
    started = time.monotonic()
    ranks = Ranks.from_environment()
    options = RunOptions(batch_size, workers, on_error, max_failures, overwrite, update, engine, memory)
    check_arguments(images, out, options, part_rows, max_pixels, dtype, max_tiles)
    for what, name in (("base", base), ("weights", weights), ("model", model)):
        if isinstance(name, str | Path):
            check_path_name(name, what)  # the manifest records it
    calibrating = CalibrationRequest(calibration, min_cosine)
    calibrating.check(precision)
    out = Path(out)
    single = is_single_file(out)

    tags = split_tags(dicom_tags)
    if tags and tile is not None:
        raise UsageError("--dicom-tags are columns of whole images: without --tile")
    tiling = Tiling(tile, stride, min_content, max_pixels, max_tiles, parse_pages(pages), mpp)
    reading: dict[str, Any] = {
        "labels": labels,
        "label_column": label_column,
        "image_column": image_column,
        "base": None if base is None else str(base),
        "follow_links": follow_links,
    }
    job_input = JobInput(describe_place(images), reading, open_source(images, **reading), tiling)

    recorded = None if single or overwrite or backend != "auto" else _recorded_backend(Layout(out))
    place = choose_device(device, ranks)
    fit = channel_stats == "fit"
    stats = None if fit else load_channel_stats(channel_stats)
    try:
        extractor = FeatureExtractor(
            model, blocks, pool, tap, weights, place, precision, image_size, decoder, recorded or backend,
            in_chans, pixels, stats,
        )  # fmt: skip
    except BackendError as error:
        hint = f"; {str(out)!r} was started with it, --overwrite starts over" if recorded else ""
        raise BackendError(f"{error}{hint}") from error

    with MEMORY.limit(memory):
        layout = None if single else Layout(out)
        earlier = None if layout is None or overwrite else read_manifest(layout)
        measuring = Measuring(job_input, workers or count_usable_cores(), layout, ranks)
        settle_preprocessing(extractor, fit, earlier, measuring)
        job = ExtractJob(out, job_input, extractor, extractor.feature_shapes(), dtype, part_rows, options, ranks, fit, tags)
        result = _extract_to_file(job, calibrating) if single else _extract_to_folder(job, calibrating)
    return replace(result, seconds=time.monotonic() - started, left_out=job_input.listing.left_out)


def _extract_to_folder(job: ExtractJob, calibrating: CalibrationRequest) -> ExtractResult:
    """Start or resume the store at ``job.out``; of several processes, each extracts its share, and rank 0 opens and closes."""
    layout = Layout(job.out)
    with output_errors(layout.root):
        layout.root.mkdir(parents=True, exist_ok=True)
    rank = job.ranks.rank
    with hold_lock(layout.rank_lock(rank) if rank else layout.lock):
        job = job if rank else prove_backend(calibrate_job(job, layout, calibrating), layout)
        plan = None if rank else open_plan(job, layout)
        _check_length(job, plan)
        if plan:
            keep_network(job, layout)
        with enter_after_rank_0(job.ranks):
            if rank:
                job = _join_network(job, layout)
                plan = join_plan(job, layout)
            extracted = _extract_share(job, plan) if plan else 0
        if plan and not rank:
            close_plan(plan, job.input)
    return _summarize_store(job, layout, extracted)


def _extract_share(job: ExtractJob, plan: Plan) -> int:
    """Extract this process's parts, then on rank 0 wait for the others'; return the number of positions processed."""
    if job.options.engine == "ray":
        return extract_with_ray(job, plan)
    records = plan.read_records()
    own = [record for record in records.values() if plan.belongs_to(record.part, job.ranks)]
    with open_part_extractor(job, plan.positions_left(records, job.ranks)) as extractor:
        extractor.limit.count_earlier(own)
        extracted = sum(_extract_parts(extractor, plan, records, plan.parts_left(records, job.ranks)))
        extractor.limit.check_end()
        if job.ranks.rank == 0:
            _wait_for_other_ranks(plan, extractor.stop)
    return extracted


def _extract_parts(extractor: PartExtractor, plan: Plan, records: dict[int, PartRecord], parts: Iterator[int]) -> Iterator[int]:
    """Extract parts, and yield for each the positions processed. Raises Interrupted after a stop request."""
    for part in parts:
        if extractor.stop:
            raise plan.interruption(extractor.stop)
        start, stop = plan.part_range(part)
        earlier = records.get(part)
        record = extractor.extract_part(plan, part, earlier)
        yield record.reached - (earlier.reached if earlier else start)
        if not record.finished:
            raise plan.interruption(extractor.stop)
        if record.reached < stop:
            return  # the end of a stream of unknown length


def _wait_for_other_ranks(plan: Plan, stop: StopRequest) -> None:
    """Wait until every part has its record, whichever process extracts it."""
    missing = list(plan.parts_left(plan.read_records(), Ranks()))
    while missing and plan.parts is not None:
        if stop:
            raise plan.interruption(stop)
        time.sleep(_POLL_SECONDS)
        if not any(not plan.finished_file(part).exists() for part in missing):
            missing = list(plan.parts_left(plan.read_records(), Ranks()))


def _summarize_store(job: ExtractJob, layout: Layout, extracted: int) -> ExtractResult:
    """Count what the store holds now; on ranks other than 0 it may not be closed yet."""
    manifest = read_manifest(layout)
    records = list_finished_parts(layout, manifest) if manifest else []
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


def _extract_to_file(job: ExtractJob, calibrating: CalibrationRequest) -> ExtractResult:
    """Write all rows to the single file ``job.out``, and its failures beside it, even if there are none.

    The file of failures is always written, so that no older one can lie beside new rows.
    """
    failures_path = failures_file(job.out)
    job = prove_backend(calibrate_job(job, None, calibrating), None)
    with atomic_file(job.out, is_store) as rows_file, atomic_file(failures_path, is_failure_lines) as failures_beside:
        source = job.input.tiling.cut(job.input.listing)
        with open_part_extractor(job, source.length) as extractor:
            with EmbeddingWriter(rows_file, job.schema, error_path=job.out) as writer:
                counts = extractor.append_rows(source.items(0, source.length or 2**62), writer)
            if counts.too_many:
                raise counts.too_many
            if extractor.stop:
                raise Interrupted("interrupted, nothing was written", extractor.stop.exit_code)
            extractor.limit.check_end()
        write_failure_lines(failures_beside, counts.failures)
    failed = len(counts.failures)
    return ExtractResult(job.out, failures_path, writer.rows, failed, job.shapes, counts.positions, counts.skipped)


def _join_network(job: ExtractJob, layout: Layout) -> ExtractJob:
    """Return the job of a rank with the backend and the network in int8 that rank 0 has chosen."""
    if (backend := _recorded_backend(layout)) is not None and backend != job.extractor.backend:
        job.extractor.network.use_backend(backend)
    return join_calibration(job, layout)


def _check_length(job: ExtractJob, plan: Plan | None) -> None:
    if plan and plan.parts is None and job.ranks.world > 1:
        raise UsageError(f"input {job.input.images!r}: its length is not known, so one process has to read all of it")


def _recorded_backend(layout: Layout) -> str | None:
    """Return the backend that made a folder's rows, which its later rows must come from, too; None if it has no rows."""
    manifest = read_manifest(layout)
    return None if manifest is None else manifest.settings["backend"]
