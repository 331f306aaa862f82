"""The probe protocol ``sgd``: linear heads trained on augmented images, as in DINOv2's linear evaluation."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.base import PREEMPTION_SIGNALS, hold_lock, progress_bar, stop_on_signal
from densefeat.errors import DensefeatError, UsageError
from densefeat.features import FeatureExtractor
from densefeat.images import open_source
from densefeat.labels import TEST, TRAIN, VAL, Task
from densefeat.probe import (
    ALL,
    CHECKPOINTS,
    LOWEST_LOSS,
    MAIN,
    BlockFitter,
    Candidate,
    FeatureColumns,
    LinearHead,
    Probed,
    ProbeFit,
    ProbeRequest,
    choose_setting,
    extract_images,
    label_options,
    load_data,
    make_request,
    read_finished,
    select_candidate,
    source_options,
    to_json,
    write_report,
)
from densefeat.sgd_probe.learning import TrainingStream, limit_batch_size, open_training_stream, train_heads
from densefeat.sgd_probe.parallel_heads import MOMENTUM, RATES, ParallelHeads
from densefeat.store import open_store
from densefeat.training import World, join_world, remove_checkpoints

_MAX_WORKERS = 8  # unless the user asks for more


def probe_images(
    images: str | Path,
    out: str | Path,
    *,
    model: str = "densefeat_densenet121",
    weights: str | Path | None = None,
    labels: str | Path | None = None,
    label_column: str | None = None,
    task: str = "auto",
    split_column: str | None = None,
    group_column: str | None = None,
    test: str | Path | None = None,
    pools: str = "avg",
    epochs: int = 10,
    batch_size: int = 128,
    workers: int | None = None,
    seed: int = 0,
    device: str | None = None,
    image_size: int | None = None,
) -> Probed:
    """Train heads for every block and for all side by side on augmented images; report as the other protocols do.

    Thirteen heads for each, one a learning rate, are trained at once while the images pass the frozen network; the one that is
    best on the validation images is taken. Validation and test images are not cropped; their features are
    kept in a store in ``out``. Runs alone, or in each of the processes that torchrun started. The same call resumes from the
    last checkpoint, and does nothing if ``out`` is finished.

    Args:
        images, model, weights, image_size: As in :func:`densefeat.extract`; the images must be readable by position.
        out: The folder for all files.
        labels: ``"folder"``, or a CSV file with ``path`` and ``label``; None: ``label_column``, or the folders of a folder.
        label_column: A column of the CSV file or of Parquet files, or the extension of a tar's members.
        task: ``"single"``, ``"multi"``, or ``"auto"``: decide by the labels.
        split_column, group_column: Columns of the CSV file, as in :func:`densefeat.probe.job.probe`.
        test: Images, or a store of them, to test on; None: 20 % of the images, stratified.
        pools: ``"avg"``, ``"max"``, ``"gem"``, or several, each of which makes candidates.
        epochs: Passes over the training images.
        batch_size: Images a step, of all processes together; fewer if there are fewer training images.
        workers: Processes that decode, for each rank; None: one for every core, up to eight.
        device: A device as torch names it; None or ``"auto"``: a GPU if there is one.

    Raises:
        UsageError: Images, labels or splits cannot be used, labels are numbers, or ``out`` holds something else.
        OutputError: ``out`` cannot be written, or another process writes to it.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 requested a stop; everything is saved.
    """
    out, device = Path(out), None if device == "auto" else device
    reading = source_options(images, labels, label_column)
    network: dict[str, Any] = dict(model=model, weights=weights, image_size=image_size)
    labelling = dict(
        labels=labels, label_column=label_column, task=task, split_column=split_column, group_column=group_column, seed=seed
    )
    stores = extract_images(
        images, test, out, labelling, **network, pool=pools, device=device or "auto", workers=workers or None
    )  # fmt: skip
    with ExitStack() as stack:
        world = stack.enter_context(join_world(device))
        if world.first:
            stack.enter_context(hold_lock(out / ".lock"))
        world.wait_for_all()  # until every rank has written what it extracted
        columns = label_options(labels, label_column) | {"split_column": split_column, "group_column": group_column}
        data = load_data([open_store(store) for store in stores], **columns, task=task, seed=seed)
        labelled = data.labelled
        batch_size = limit_batch_size(batch_size, data.sizes()["train"], world)
        request = make_request(data, _describe_protocol(labelled.targets.task, epochs, batch_size), seed)
        if (results := read_finished(out, request)) is not None:
            return Probed(out, results, done_before=True)

        extractor = FeatureExtractor(blocks="all", pool=pools, device=str(world.device), **network)
        workers = min(_MAX_WORKERS, os.cpu_count() or 1) if workers is None else workers
        source, train = open_source(images, **reading), data.parts == TRAIN
        stream = open_training_stream(
            source, labelled.targets, labelled.paths, train, extractor, epochs, batch_size, workers, seed, world
        )
        fitter = BlockFitter("sgd", data.columns, labelled.targets, labelled.rows, data.parts, seed, lambda _: None)
        heads = _train(stream, extractor, fitter, request, out, world)
        results = _write_results(heads, fitter, request, out) if world.first else {}
        world.wait_for_all()
        return Probed(out, results)


def _train(
    stream: TrainingStream, extractor: FeatureExtractor, fitter: BlockFitter, request: ProbeRequest, out: Path, world: World
) -> ParallelHeads:
    targets, batch_size = fitter.targets, stream.sampler.batch_size
    sizes = {name: fitter.columns.width(columns) for name, columns in _candidate_columns(fitter.columns).items()}
    heads = ParallelHeads.start(sizes, len(targets.classes), targets.task, batch_size, fitter.seed, world.device)
    identity = json.dumps(to_json(request.identity()), sort_keys=True)
    with (
        stop_on_signal(*PREEMPTION_SIGNALS) as stop,
        progress_bar("learning", stream.steps * batch_size, show=world.first) as advance,
    ):
        train_heads(heads, stream, extractor, out / CHECKPOINTS, identity, world, stop, advance)
    return heads


def _write_results(heads: ParallelHeads, fitter: BlockFitter, request: ProbeRequest, out: Path) -> dict[str, Any]:
    val, test = (fitter.targets.take(fitter.parts == part) for part in (VAL, TEST))
    selection = select_candidate(_make_candidates(heads, fitter), val, test, fitter.seed)
    if highest := [report.name for report in selection.reports if report.chosen["lr"] == RATES[-1]]:
        note = f"the highest learning rate was the best for {', '.join(highest)}: more epochs may give better heads"
        request = replace(request, notes=(*request.notes, note))
    results = write_report(out, selection, request)
    remove_checkpoints(out / CHECKPOINTS)  # the same call now finds the results
    return results


def _candidate_columns(columns: FeatureColumns) -> dict[str, tuple[str, ...]]:
    """Name the candidates: each column alone, and all side by side."""
    alone = {name: (name,) for name in columns.widths}
    return alone | ({ALL: tuple(alone)} if len(alone) > 1 else {})


def _make_candidates(heads: ParallelHeads, fitter: BlockFitter) -> Iterator[Candidate]:
    for name, columns in _candidate_columns(fitter.columns).items():
        yield fitter.candidate(name, columns, _choose_rate(heads, name, fitter, columns))


def _choose_rate(heads: ParallelHeads, name: str, fitter: BlockFitter, columns: tuple[str, ...]) -> ProbeFit:
    """Choose the rate that is best on the validation images. Raises DensefeatError if the heads of all rates diverged."""
    val = fitter.parts == VAL
    x, targets = fitter.columns.read(columns, fitter.rows[val]), fitter.targets.take(val)
    choice, (head, _) = choose_setting("lr", _score_rates(heads, name, x), lambda pair: pair[1], targets, lambda _: None)
    return ProbeFit(head, choice.chosen, choice.tried, choice.val_scores)


def _score_rates(heads: ParallelHeads, name: str, x: np.ndarray) -> Iterator[tuple[float, tuple[LinearHead, np.ndarray]]]:
    """Yield rates with their heads and scores, without those that diverged."""
    all_diverged = True
    for place, rate in enumerate(RATES):
        head = heads.linear(name, place)
        with np.errstate(over="ignore", invalid="ignore"):
            scores = head.scores(x)
        if np.isfinite(scores).all():
            all_diverged = False
            yield rate, (head, scores)
    if all_diverged:
        raise DensefeatError(f"heads on {name!r} diverged at all {len(RATES)} learning rates: use --protocol ridge")


def _describe_protocol(task: Task, epochs: int, batch_size: int) -> dict[str, Any]:
    """Describe the protocol as results.json has it. Raises UsageError for numbers to predict.

    The texts identify finished probes and checkpoints of unfinished ones: with another wording these no longer match.
    """
    if task == "regression":
        raise UsageError("protocol 'sgd' predicts classes, these labels are numbers: use ridge")
    loss = "cross entropy" if task == "single" else "binary cross entropy of each class, summed"
    return {
        "name": "sgd",
        "grid": {"lr": list(RATES)},
        "criterion": f"{MAIN[task]} on the validation rows; of equals {LOWEST_LOSS}; rates that diverged are left out",
        "objective": f"{loss}, mean over images; no weight decay",
        "solver": f"SGD, momentum {MOMENTUM}, lr * batch size / 256, cosine to 0",
        "epochs": epochs,
        "batch_size": batch_size,
        "augmentation": "a random part of 8 % to 100 % of the area, mirrored or not; whole images to choose and test",
        "refit": "none: validation rows only choose",
        "sources": [
            "arXiv 2304.07193 (DINOv2), linear evaluation",
            "facebookresearch/dinov2, dinov2/eval/linear.py: the grid of lr",
        ],
    }
