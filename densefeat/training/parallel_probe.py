"""The probe protocol ``sgd``: linear heads learnt by descent on augmented images, as in DINOv2's linear evaluation."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.errors import DensefeatError, UsageError
from densefeat.extract.interrupts import stop_on_signal
from densefeat.extract.progress import progress_bar
from densefeat.features.extractor import FeatureExtractor
from densefeat.heads.blocks import Fits
from densefeat.heads.candidates import ALL, Candidate, conclude
from densefeat.heads.choice import choose
from densefeat.heads.columns import Columns
from densefeat.heads.extracted import extracted, labels_of, reading_of
from densefeat.heads.linear import Linear
from densefeat.heads.metrics import MAIN
from densefeat.heads.prepared import Prepared, prepare
from densefeat.heads.probe import Probed, asked_before, asked_of, finished
from densefeat.heads.protocols import LOWEST_LOSS, Fitted
from densefeat.heads.results import Asked, plain, write_report
from densefeat.heads.splits import TEST, TRAIN, VAL
from densefeat.heads.targets import Task
from densefeat.images.sources import open_source
from densefeat.store.lock import locked
from densefeat.store.reader import open_store
from densefeat.training.parallel_heads import MOMENTUM, RATES, ParallelHeads
from densefeat.training.parallel_training import Lesson, fitting_batch, learn, make_lesson
from densefeat.training.world import World, joined

CHECKPOINTS = ".checkpoints"
WORKERS = 8  # at most, where none are named
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last: what schedulers send before they preempt


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
        split_column, group_column: Of the CSV, as in :func:`densefeat.heads.probe.probe`.
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
    reading = reading_of(images, labels, label_column)
    making: dict[str, Any] = dict(model=model, weights=weights, pool=pools, image_size=image_size)
    places = extracted(images, test, out, labels, **reading, **making, device=device or "auto", workers=workers or None)
    with ExitStack() as stack:
        world = stack.enter_context(joined(device))
        if world.first:
            stack.enter_context(locked(out / ".lock"))
        world.wait()  # until all ranks have written what they extracted
        stores = [open_store(place) for place in places]
        columns = labels_of(labels, label_column) | {"split_column": split_column, "group_column": group_column}
        found = prepare(stores, **columns, task=task, seed=seed)
        asked = asked_to_learn(found, epochs, batch_size, seed, world)
        if (before := finished(out, asked)) is not None:
            return Probed(out, before, done_before=True)
        extractor = FeatureExtractor(
            model, "all", pools, weights=weights, device=str(world.device), image_size=image_size
        )  # fmt: skip
        workers = min(WORKERS, os.cpu_count() or 1) if workers is None else workers
        source, size = open_source(images, **reading), asked.protocol["batch_size"]
        known, train = found.labelled, found.parts == TRAIN
        lesson = make_lesson(
            source, known.targets, known.paths, train, extractor, epochs, size, workers, seed, world
        )  # fmt: skip
        fits = Fits("sgd", found.columns, known.targets, known.rows, found.parts, seed, lambda _: None)
        heads = trained(lesson, extractor, fits, asked, out, world)
        results = concluded(heads, fits, asked, out) if world.first else {}
        world.wait()
        return Probed(out, results)


def asked_to_learn(found: Prepared, epochs: int, batch_size: int, seed: int, world: World) -> Asked:
    """What the report tells of it; the same on every rank."""
    size = fitting_batch(batch_size, found.sizes()["train"], world)
    return asked_of(found, described(found.labelled.targets.task, epochs, size), seed)


def trained(lesson: Lesson, extractor: FeatureExtractor, fits: Fits, asked: Asked, out: Path, world: World) -> ParallelHeads:
    targets, size = fits.targets, lesson.sampler.batch_size
    names = {name: fits.columns.width(wanted) for name, wanted in candidates_of(fits.columns).items()}
    heads = ParallelHeads.start(names, len(targets.classes), targets.task, size, fits.seed, world.device)
    text = json.dumps(plain(asked_before(vars(asked))), sort_keys=True)
    with (
        stop_on_signal(*SIGNALS) as stop,
        progress_bar("learning", lesson.steps * size, show=world.first) as advance,
    ):
        learn(heads, lesson, extractor, out / CHECKPOINTS, text, world, stop, advance)
    return heads


def concluded(heads: ParallelHeads, fits: Fits, asked: Asked, out: Path) -> dict[str, Any]:
    val, test = (fits.targets.take(fits.parts == part) for part in (VAL, TEST))
    found = conclude(candidates(heads, fits), val, test, fits.seed)
    if highest := [outcome.name for outcome in found.outcomes if outcome.chosen["lr"] == RATES[-1]]:
        told = f"the highest learning rate was the best for {', '.join(highest)}: more epochs may serve better"
        asked = replace(asked, notes=(*asked.notes, told))
    results = write_report(out, found, asked)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)  # the same call now finds the results
    return results


def candidates_of(columns: Columns) -> dict[str, tuple[str, ...]]:
    """Each column alone, and all side by side."""
    alone = {name: (name,) for name in columns.widths}
    return alone | ({ALL: tuple(alone)} if len(alone) > 1 else {})


def candidates(heads: ParallelHeads, fits: Fits) -> Iterator[Candidate]:
    """Of each the rate that is best on the validation images. DensefeatError where all rates diverged."""
    for name, wanted in candidates_of(fits.columns).items():
        yield fits.candidate(name, wanted, chosen(heads, name, fits, wanted))


def chosen(heads: ParallelHeads, name: str, fits: Fits, wanted: tuple[str, ...]) -> Fitted:
    val = fits.parts == VAL
    x = fits.columns.read(wanted, fits.rows[val])
    choice, (head, _) = choose("lr", learnt(heads, name, x), lambda pair: pair[1], fits.targets.take(val), lambda _: None)
    return Fitted(head, choice.chosen, choice.tried, choice.val_scores)


def learnt(heads: ParallelHeads, name: str, x: np.ndarray) -> Iterator[tuple[float, tuple[Linear, np.ndarray]]]:
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


def described(task: Task, epochs: int, batch_size: int) -> dict[str, Any]:
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
