"""The probe protocol ``sgd``: linear heads learnt by descent on augmented images, as in DINOv2's linear evaluation."""

import json
import os
import shutil
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
    LOWEST_LOSS,
    MAIN,
    BlockFitter,
    Candidate,
    Columns,
    Linear,
    Probed,
    ProbeData,
    ProbeFit,
    ProbeRequest,
    choose,
    extract_images,
    identity,
    label_options,
    load_data,
    make_request,
    read_finished,
    select_candidate,
    source_options,
    to_json,
    write_report,
)
from densefeat.sgd_probe.learning import TrainingStream, fit_batch_size, open_training_stream, train_heads
from densefeat.sgd_probe.parallel_heads import MOMENTUM, RATES, ParallelHeads
from densefeat.store import open_store
from densefeat.training import World, join_world

_CHECKPOINTS = ".checkpoints"
_WORKERS = 8  # at most, where none are named


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
    """Learn heads for every block, and for all of them side by side, on augmented images; report as the other protocols do.

    Thirteen learning rates for each, all at once, while the images pass the frozen network; the best on the validation images
    is taken. Those and the test images are judged by features of the whole image, kept in a store in ``out``. Alone, or in
    each of the processes that torchrun started. The same call goes on from the last checkpoint, and finds what is finished.

    Args:
        images, model, weights, image_size: As in :func:`densefeat.extract`; images that can be read by position.
        out: The folder for everything.
        labels: ``"folder"``, or a CSV with ``path`` and ``label``; None: ``label_column``'s, of a folder its folders.
        label_column: Of the CSV, of Parquet files, or the extension of a tar's members.
        task: ``"single"``, ``"multi"``, or ``"auto"``: by the labels.
        split_column, group_column: Of the CSV, as in :func:`densefeat.probe.job.probe`.
        test: Images (or a store of theirs) to test on; None: 20 % of the images, stratified.
        pools: ``"avg"``, ``"max"``, ``"gem"``, or several: candidates of their own.
        epochs: Over the training images.
        batch_size: Of all processes together; where there are fewer training images, these.
        workers: Processes that decode, of each rank; None: one for every core, up to eight.
        device: As torch names it; None or ``"auto"``: a GPU if there is one.

    Raises:
        UsageError: Images, labels or splits that do not serve, numbers to predict; ``out`` holds something else.
        OutputError: ``out`` cannot be written, or is being written to.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 asked to stop; everything is saved.
    """
    out, device = Path(out), None if device == "auto" else device
    reading = source_options(images, labels, label_column)
    making: dict[str, Any] = dict(model=model, weights=weights, pool=pools, image_size=image_size)
    places = extract_images(images, test, out, labels, **reading, **making, device=device or "auto", workers=workers or None)
    with ExitStack() as stack:
        world = stack.enter_context(join_world(device))
        if world.first:
            stack.enter_context(hold_lock(out / ".lock"))
        world.wait_for_all()  # until all ranks have written what they extracted
        stores = [open_store(place) for place in places]
        columns = label_options(labels, label_column) | {"split_column": split_column, "group_column": group_column}
        found = load_data(stores, **columns, task=task, seed=seed)
        asked = _make_request(found, epochs, batch_size, seed, world)
        if (before := read_finished(out, asked)) is not None:
            return Probed(out, before, done_before=True)
        extractor = FeatureExtractor(
            model, "all", pools, weights=weights, device=str(world.device), image_size=image_size
        )  # fmt: skip
        workers = min(_WORKERS, os.cpu_count() or 1) if workers is None else workers
        source, size = open_source(images, **reading), asked.protocol["batch_size"]
        known, train = found.labelled, found.parts == TRAIN
        lesson = open_training_stream(
            source, known.targets, known.paths, train, extractor, epochs, size, workers, seed, world
        )  # fmt: skip
        fits = BlockFitter("sgd", found.columns, known.targets, known.rows, found.parts, seed, lambda _: None)
        heads = _train_heads(lesson, extractor, fits, asked, out, world)
        results = _write_results(heads, fits, asked, out) if world.first else {}
        world.wait_for_all()
        return Probed(out, results)


def _make_request(found: ProbeData, epochs: int, batch_size: int, seed: int, world: World) -> ProbeRequest:
    """What the report tells of it; the same on every rank."""
    size = fit_batch_size(batch_size, found.sizes()["train"], world)
    return make_request(found, _describe_protocol(found.labelled.targets.task, epochs, size), seed)


def _train_heads(
    lesson: TrainingStream, extractor: FeatureExtractor, fits: BlockFitter, asked: ProbeRequest, out: Path, world: World
) -> ParallelHeads:
    targets, size = fits.targets, lesson.sampler.batch_size
    names = {name: fits.columns.width(wanted) for name, wanted in _candidate_columns(fits.columns).items()}
    heads = ParallelHeads.start(names, len(targets.classes), targets.task, size, fits.seed, world.device)
    text = json.dumps(to_json(identity(vars(asked))), sort_keys=True)
    with (
        stop_on_signal(*PREEMPTION_SIGNALS) as stop,
        progress_bar("learning", lesson.steps * size, show=world.first) as advance,
    ):
        train_heads(heads, lesson, extractor, out / _CHECKPOINTS, text, world, stop, advance)
    return heads


def _write_results(heads: ParallelHeads, fits: BlockFitter, asked: ProbeRequest, out: Path) -> dict[str, Any]:
    val, test = (fits.targets.take(fits.parts == part) for part in (VAL, TEST))
    found = select_candidate(_make_candidates(heads, fits), val, test, fits.seed)
    if highest := [outcome.name for outcome in found.outcomes if outcome.chosen["lr"] == RATES[-1]]:
        told = f"the highest learning rate was the best for {', '.join(highest)}: more epochs may serve better"
        asked = replace(asked, notes=(*asked.notes, told))
    results = write_report(out, found, asked)
    shutil.rmtree(out / _CHECKPOINTS, ignore_errors=True)  # the same call now finds the results
    return results


def _candidate_columns(columns: Columns) -> dict[str, tuple[str, ...]]:
    """Each column alone, and all side by side."""
    alone = {name: (name,) for name in columns.widths}
    return alone | ({ALL: tuple(alone)} if len(alone) > 1 else {})


def _make_candidates(heads: ParallelHeads, fits: BlockFitter) -> Iterator[Candidate]:
    """Of each the rate that is best on the validation images. DensefeatError where all rates diverged."""
    for name, wanted in _candidate_columns(fits.columns).items():
        yield fits.candidate(name, wanted, _choose_rate(heads, name, fits, wanted))


def _choose_rate(heads: ParallelHeads, name: str, fits: BlockFitter, wanted: tuple[str, ...]) -> ProbeFit:
    val = fits.parts == VAL
    x = fits.columns.read(wanted, fits.rows[val])
    choice, (head, _) = choose("lr", _score_rates(heads, name, x), lambda pair: pair[1], fits.targets.take(val), lambda _: None)
    return ProbeFit(head, choice.chosen, choice.tried, choice.val_scores)


def _score_rates(heads: ParallelHeads, name: str, x: np.ndarray) -> Iterator[tuple[float, tuple[Linear, np.ndarray]]]:
    """Rates, heads and their scores, but for those that diverged. DensefeatError where all did."""
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
    """What makes figures comparable with published ones, as JSON. UsageError for numbers to predict."""
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
