"""The probe protocols ``sgd`` and ``attentive``: heads trained on augmented images, as in DINOv2's linear evaluation."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from densefeat.base import PREEMPTION_SIGNALS, hold_lock, progress_bar, stop_on_signal
from densefeat.errors import UsageError
from densefeat.features import FeatureExtractor
from densefeat.images import ChannelStats, PixelRule, Preprocessing, open_source
from densefeat.labels import TEST, TRAIN, VAL, Task
from densefeat.probing import (
    CHECKPOINTS,
    LOWEST_LOSS,
    MAIN,
    BlockFitter,
    Candidate,
    Probed,
    ProbeRequest,
    add_certainty,
    compare_candidates,
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
from densefeat.sgd_probe.attentive_heads import ATTENTIVE_RATES, BETAS, QUERIES, AttentiveHeads
from densefeat.sgd_probe.candidates import make_attentive_candidates, make_linear_candidates, name_attentive, name_linear
from densefeat.sgd_probe.learning import LearningHeads, TrainingStream, limit_batch_size, open_training_stream, train_heads
from densefeat.sgd_probe.parallel_heads import MOMENTUM, RATES, ParallelHeads
from densefeat.sgd_probe.whole_images import WholeImages
from densefeat.store import is_store, open_store
from densefeat.training import World, join_world, remove_checkpoints

_MAX_WORKERS = 8  # unless the user asks for more
_PROTOCOLS = ("sgd", "attentive")


def probe_images(
    images: str | Path,
    out: str | Path,
    *,
    protocol: str = "sgd",
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
    pixels: PixelRule | None = None,
    in_chans: int | None = None,
    channel_stats: str | Path | ChannelStats | None = None,
) -> Probed:
    """Train heads for every block and for all side by side on augmented images; report as the other protocols do.

    Thirteen heads for each, one a learning rate, are trained at once while the images pass the frozen network; the one that is
    best on the validation images is taken. Validation and test images are not cropped; their features are kept in a store in
    ``out``. Protocol ``"attentive"`` adds heads that pool maps by attention (:class:`densefeat.probing.AttentiveHead`), for the
    last block and for all, each at seven rates; maps are not kept.

    Runs alone, or in each of the processes that torchrun started. The same call resumes from the last checkpoint, and does
    nothing if ``out`` is finished.

    Args:
        images, model, weights, image_size, pixels, in_chans, channel_stats: As in :func:`densefeat.extract`; the images must be
            readable by position.
        protocol: ``"sgd"`` or ``"attentive"``.
        out: The folder for all files.
        labels: ``"folder"``, or a CSV file with ``path`` and ``label``; None: ``label_column``, or the folders of a folder.
        label_column: A column of the CSV file or of Parquet files, or the extension of a tar's members.
        task: ``"single"``, ``"multi"``, or ``"auto"``: decide by the labels.
        split_column, group_column: Columns of the CSV file, as in :func:`densefeat.probing.job.probe`.
        test: Images, or (for sgd) a store of them, to test on; None: 20 % of the images, stratified.
        pools: ``"avg"``, ``"max"``, ``"gem"``, or several, each of which makes candidates; for attentive ``"avg"``.
        epochs: Passes over the training images.
        batch_size: Images a step, of all processes together; fewer if there are fewer training images.
        workers: Processes that decode, for each rank; None: one for every core, up to eight.
        device: A device as torch names it; None or ``"auto"``: a GPU if there is one.

    Raises:
        UsageError: Images, labels or splits cannot be used, labels are numbers, or ``out`` holds something else.
        OutputError: ``out`` cannot be written, or another process writes to it.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 requested a stop; everything is saved.
    """
    _check_protocol(protocol, pools, test)
    out, device = Path(out), None if device == "auto" else device
    reading = source_options(images, labels, label_column)
    network: dict[str, Any] = dict(model=model, weights=weights, image_size=image_size, in_chans=in_chans)
    labelling = dict(
        labels=labels, label_column=label_column, task=task, split_column=split_column, group_column=group_column, seed=seed
    )
    stores = extract_images(
        images, test, out, labelling, **network, pool=pools, device=device or "auto", workers=workers or None,
        pixels=pixels, channel_stats=channel_stats,
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
        request = make_request(data, _describe_protocol(protocol, labelled.targets.task, epochs, batch_size), seed)
        if (results := read_finished(out, request)) is not None:
            return Probed(out, results, done_before=True)

        pooled = "none" if protocol == "attentive" else pools
        extractor = FeatureExtractor(blocks="all", pool=pooled, device=str(world.device), **network)
        extractor.preprocessing = Preprocessing.from_json(open_store(stores[0]).provenance["preprocessing"], str(stores[0]))
        workers = min(_MAX_WORKERS, os.cpu_count() or 1) if workers is None else workers
        source, train = open_source(images, **reading), data.parts == TRAIN
        stream = open_training_stream(
            source, labelled.targets, labelled.paths, train, extractor, epochs, batch_size, workers, seed, world
        )
        fitter = BlockFitter(protocol, data.columns, labelled.targets, labelled.rows, data.parts, seed, lambda _: None)
        linear = _start_linear(fitter, batch_size, world)
        groups: list[LearningHeads] = [linear]
        if protocol == "attentive":
            sources = [source] if test is None else [source, open_source(test, **reading)]
            whole = WholeImages(sources, data, extractor, world)
            attentive = _start_attentive(fitter, whole)
            groups.append(attentive)
        _train(groups, stream, extractor, request, out, world)
        added = make_attentive_candidates(attentive, whole, fitter) if protocol == "attentive" else []
        results = _write_results(linear, added, fitter, request, out) if world.first else {}
        world.wait_for_all()
        return Probed(out, results)


def _check_protocol(protocol: str, pools: str, test: str | Path | None) -> None:
    if protocol not in _PROTOCOLS:
        raise UsageError(f"protocol {protocol!r}: one of {', '.join(_PROTOCOLS)}")
    if protocol == "attentive" and pools != "avg":
        raise UsageError(f"pool {pools!r}: protocol 'attentive' reads whole maps, and averages them for linear heads")
    if protocol == "attentive" and test is not None and is_store(test):
        raise UsageError(f"{str(test)!r} is a store, and protocol 'attentive' needs maps of the test images: give the images")


def _start_linear(fitter: BlockFitter, batch_size: int, world: World) -> ParallelHeads:
    targets = fitter.targets
    sizes = {name: fitter.columns.width(columns) for name, columns in name_linear(fitter.columns).items()}
    return ParallelHeads.start(sizes, len(targets.classes), targets.task, batch_size, fitter.seed, world.device)


def _start_attentive(fitter: BlockFitter, images: WholeImages) -> AttentiveHeads:
    candidates, targets = name_attentive(fitter.columns), fitter.targets
    moments, classes = images.measure_channels(), len(targets.classes)
    return AttentiveHeads.start(candidates, moments, classes, targets.task, fitter.seed, images.world.device)


def _train(
    groups: Sequence[LearningHeads],
    stream: TrainingStream,
    extractor: FeatureExtractor,
    request: ProbeRequest,
    out: Path,
    world: World,
) -> None:
    identity = json.dumps(to_json(request.identity()), sort_keys=True)
    with (
        stop_on_signal(*PREEMPTION_SIGNALS) as stop,
        progress_bar("learning", stream.steps * stream.sampler.batch_size, show=world.first) as advance,
    ):
        train_heads(groups, stream, extractor, out / CHECKPOINTS, identity, world, stop, advance)


def _write_results(
    linear: ParallelHeads, attentive: Sequence[Candidate], fitter: BlockFitter, request: ProbeRequest, out: Path
) -> dict[str, Any]:
    val, test = (fitter.targets.take(fitter.parts == part) for part in (VAL, TEST))
    selection = select_candidate(chain(make_linear_candidates(linear, fitter), attentive), val, test, fitter.seed)
    notes = list(request.notes)
    top = {candidate.name: ATTENTIVE_RATES[-1] for candidate in attentive}
    if highest := [each.name for each in selection.reports if each.chosen["lr"] == top.get(each.name, RATES[-1])]:
        notes.append(f"the highest learning rate was the best for {', '.join(highest)}: more epochs may give better heads")
    if len(attentive) > 1 and (told := compare_candidates(attentive[1], attentive[0], test, fitter.seed)):
        notes.append(told)
    results = write_report(out, add_certainty(selection, fitter), replace(request, notes=tuple(notes)))
    remove_checkpoints(out / CHECKPOINTS)  # the same call now finds the results
    return results


def _describe_protocol(protocol: str, task: Task, epochs: int, batch_size: int) -> dict[str, Any]:
    """Describe the protocol as results.json has it. Raises UsageError for numbers to predict.

    The texts identify finished probes and checkpoints of unfinished ones: with another wording these no longer match.
    """
    if task == "regression":
        raise UsageError(f"protocol {protocol!r} predicts classes, these labels are numbers: use ridge")
    loss = "cross entropy" if task == "single" else "binary cross entropy of each class, summed"
    description: dict[str, Any] = {
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
    return description if protocol == "sgd" else description | _describe_attentive(description)


def _describe_attentive(linear: dict[str, Any]) -> dict[str, Any]:
    """Describe what the protocol has more than that of the linear heads."""
    return {
        "name": "attentive",
        "grid": linear["grid"] | {"lr of attentive heads": list(ATTENTIVE_RATES)},
        "solver": f"{linear['solver']}; attentive heads: Adam, betas {BETAS}, lr of any batch size, cosine to 0",
        "attention": f"{QUERIES} queries a block over positions, a group of values each; channels standardised",
        "sources": [
            *linear["sources"],
            "arXiv 2506.10178 (Attention, Please!), efficient probing",
            "arXiv 2401.08541 (AIM), attentive probe: standardised channels",
        ],
    }
