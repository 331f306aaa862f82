"""A run: from a recipe to a folder with weights; an interrupted run resumes."""

import math
import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from densefeat.base import (
    PREEMPTION_SIGNALS,
    StopRequest,
    describe_fallback,
    hold_lock,
    output_errors,
    progress_bar,
    stop_on_signal,
)
from densefeat.errors import DensefeatError, OutputError
from densefeat.loading import WEIGHTS
from densefeat.training.checkpoints import newest_checkpoint, restore_checkpoint
from densefeat.training.data import TrainingData
from densefeat.training.loop import fit, save_state, score_split, validate
from densefeat.training.progress import Progress, training_progress
from densefeat.training.recipe import Recipe
from densefeat.training.run_folder import DIVERGENCE, RunFolder
from densefeat.training.scores import AnyScores
from densefeat.training.setup import TrainingSetup
from densefeat.training.state import Setup, State, build_state
from densefeat.training.watch import DivergedError
from densefeat.training.world import join_world

_MAX_NAMED = 1000  # images listed by name among those that could not be read


@dataclass(frozen=True)
class Trained:
    """A run that reached ``step`` of ``steps``.

    ``scores``: of the weights in the folder, once the run is complete: ``{"val": …, "test": …}``. ``chosen``: the step of
    these weights, if they were selected on the validation images.
    """

    path: Path
    rank: int
    step: int
    steps: int
    scores: dict[str, dict[str, Any]] | None
    chosen: int | None = None


def train(
    recipe: Recipe, out: str | Path, device: str | None = None, steps: int | None = None, minutes: float | None = None
) -> Trained:
    """Train a network in the folder ``out``; the same call resumes from the newest checkpoint there.

    Runs alone, or in each of the processes that torchrun started (``out`` is then a folder that all machines share).

    Args:
        device: ``"cpu"``, ``"cuda"``, …; None: a GPU if there is one.
        steps: Stop, with a checkpoint, after this many steps; None: run to the end.
        minutes: Stop, with a checkpoint, after the first step that ends this many minutes after the call; None: run to the end.

    Raises:
        UsageError: Data or network do not exist or do not fit; ``out`` holds a run of another recipe.
        OutputError: ``out`` cannot be written, or another process writes to it.
        DivergedError: The loss is not finite, or far above the chance level; ``divergence.json`` in ``out`` has details.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 requested a stop; there is a checkpoint.
    """
    return run_training(TrainingSetup(recipe), out, device, steps, minutes)


def run_training(
    setup: Setup, out: str | Path, device: str | None = None, steps: int | None = None, minutes: float | None = None
) -> Trained:
    """Run any kind of training as :func:`train` does."""
    deadline = time.monotonic() + (math.inf if minutes is None else 60 * minutes)
    recipe, folder = setup.recipe, RunFolder(Path(out))
    with ExitStack() as stack:
        stack.enter_context(_use_threads(recipe.threads))
        stack.enter_context(_choose_algorithms(recipe.deterministic))
        world = stack.enter_context(join_world(device))
        setup.check_output(folder.path)
        if world.first:
            with output_errors(folder.path):
                folder.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(folder.path / ".lock"))
            folder.check(recipe)
        world.wait_for_all()
        if not folder.path.is_dir():
            raise OutputError(f"output {str(out)!r}: rank {world.rank} does not see this folder, which all ranks must share")
        with progress_bar("decoding", None, show=world.first) as advance:
            data = setup.open_data(world, advance)
        stop = stack.enter_context(stop_on_signal(*PREEMPTION_SIGNALS))  # from here on there is something to save

        per_epoch = data.sampler.steps_per_epoch
        total = max(1, round(recipe.epochs * per_epoch))
        state = build_state(setup, len(data.labelled.classes), data.preprocessing.size, per_epoch, total, world)
        state.images = data.fingerprint()
        if len(set(world.gather_objects(state.images))) > 1:
            raise DensefeatError("the ranks see different training images: check that all can read them")
        checkpoint, messages = _resume(state, folder)
        lost = _check_kept_weights(state, folder)
        if not lost and (results := folder.results()) is not None and state.step == results.get("step", total):
            # the last checkpoint is older than the last evaluation, which selected the weights
            chosen = results.get("kept_step") if recipe.keep == "best" else None
            scores = {name: value for name, value in results.items() if isinstance(value, dict)}
            return Trained(folder.path, world.rank, state.step, total, scores, chosen)

        images = setup.recipe.batch_size
        progress = stack.enter_context(training_progress(state.step * images, total * images, world.first))
        notes = [*_describe_precision(state), *data.notes, *_describe_failures(data), *_describe_missing_packages()]
        for message in [*messages, *lost, *notes]:
            progress.print(message)
        if world.first:
            folder.open(recipe, state.step if checkpoint else None)
        if checkpoint is None:
            _start(state, data, folder, stop, progress)
        last = total if steps is None else min(total, state.step + steps)
        _fit_with_retreats(state, data, folder, stop, progress, last, deadline)
        complete = state.step == total or state.patience_exhausted
        final_scores = _finish(state, data, folder, progress) if complete else None
        chosen = state.kept_step if recipe.keep == "best" else None
        return Trained(folder.path, world.rank, state.step, total, final_scores, chosen)


def _resume(state: State, folder: RunFolder, rejected: Collection[str] = ()) -> tuple[str | None, list[str]]:
    """Load the newest undamaged checkpoint that rank 0 sees; return its name, and messages for the user.

    Checkpoints with ``rejected`` names are removed, except that of step 0.
    """
    path, messages = newest_checkpoint(folder.checkpoints, rejected) if state.world.first else (None, [])
    name = state.world.broadcast(path.name if path else None)
    if name is not None:
        restore_checkpoint(folder.checkpoints / name, state.load_state_dict)
        if state.step:
            earlier = ", ".join(state.precisions[:-1])
            changed = f", in {state.precision} (earlier steps: {earlier})" if earlier else ""
            messages.append(f"resuming from step {state.step}{changed}")
    return name, messages


def _check_kept_weights(state: State, folder: RunFolder) -> list[str]:
    """Set the run folder's weights aside if they are damaged, so that the next evaluation keeps its own; return messages."""
    kept = state.best > float("-inf") or folder.results() is not None
    message = state.world.broadcast(folder.set_aside_damaged_weights() if state.world.first and kept else None)
    if message is None:
        return []
    state.best = float("-inf")
    return [message]


def _start(state: State, data: TrainingData, folder: RunFolder, stop: StopRequest, progress: Progress) -> None:
    """Prepare the network before the first step, if this kind of run does so, and evaluate it."""
    if state.setup.start(state, data, stop, progress):
        validate(state, data, folder, progress)
    if state.recipe.retreats:
        save_state(state, folder)  # the run may have to return to it


def _fit_with_retreats(
    state: State, data: TrainingData, folder: RunFolder, stop: StopRequest, progress: Progress, last: int, deadline: float
) -> None:
    """Run the steps up to ``last`` or the deadline; after divergence, from the last checkpoint, if the recipe allows it."""
    rejected: set[str] = set()
    while state.step < last and not state.patience_exhausted:
        try:
            if fit(state, data, folder, stop, progress, last, deadline):
                return
        except DivergedError as error:
            if state.world.first:
                folder.write(DIVERGENCE, error.report)
            if state.retreats >= state.recipe.retreats or not _retreat(state, folder, rejected):
                raise
            progress.print(f"{error}: back to step {state.step} at {state.lr_scale:g} of the learning rate")


def _retreat(state: State, folder: RunFolder, rejected: set[str]) -> bool:
    """Return to the last good checkpoint, at half the learning rate; False if there is none.

    A checkpoint that led to divergence a second time counts as bad.
    """
    retreats, scale = state.retreats + 1, state.lr_scale / 2
    name, _ = _resume(state, folder, rejected)
    if name is None:
        return False
    rejected.add(name)
    state.retreats, state.lr_scale = retreats, scale
    if state.world.first:
        folder.rewind(state.step)
    return True


def _finish(state: State, data: TrainingData, folder: RunFolder, progress: Progress) -> dict[str, dict[str, Any]]:
    """Evaluate the last weights, then score the weights in the folder on every split that lacks a score of them."""
    scores: dict[str, AnyScores] = {}
    if not state.patience_exhausted or state.best == float("-inf"):
        scores["val"] = validate(state, data, folder, progress)
    splits = {"test": data.test} if data.test else {}
    if state.recipe.keep == "best":
        state.world.wait_for_all()
        state.eval_model.load_state_dict(load_file(folder.path / WEIGHTS))
        splits = {"val": data.val} | splits
    scores |= {name: score_split(state, split, data) for name, split in splits.items()}
    final = {name: found.to_json() | ({"remark": found.remark} if found.remark else {}) for name, found in scores.items()}
    failures = sorted(set().union(*state.world.gather_objects(data.list_failures())))
    if failures:
        key, reason = failures[0]
        progress.print(f"{len(failures)} images could not be read and count nowhere, the first: {key}: {reason}")
    if state.world.first:
        named = [{"key": key, "reason": reason} for key, reason in failures[:_MAX_NAMED]]
        facts = {"step": state.step, "kept_step": state.kept_step, "unread": len(failures), "first_unread": named,
                 "precisions": state.precisions}  # fmt: skip
        folder.write_results(final | facts)
    return final


def _describe_precision(state: State) -> list[str]:
    """Return a line where the run does not compute in its recipe's precision."""
    asked = state.recipe.precision
    return [] if state.precision == asked else [describe_fallback(asked, state.precision)]


def _describe_failures(data: TrainingData) -> list[str]:
    """Return a line on the images that could not be decoded, if any."""
    if not data.failures:
        return []
    key, reason = data.failures[0]
    return [f"{len(data.failures)} images cannot be read and are left out, the first: {key}: {reason}"]


def _describe_missing_packages() -> list[str]:
    """Return a line for each file that the run folder will lack."""
    hints = {"matplotlib": "curves.png needs: pip install matplotlib",
             "tensorboard": "TensorBoard's events need: pip install 'densefeat[train]'"}  # fmt: skip
    return [hint for package, hint in hints.items() if not find_spec(package)]


@contextmanager
def _use_threads(threads: int | None) -> Iterator[None]:
    """Let torch compute with this many threads of the CPU, if requested, for the time of the run."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _choose_algorithms(deterministic: bool) -> Iterator[None]:
    """Switch torch to its deterministic algorithms, if requested, for the time of the run."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this setting
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def format_result(result: Trained) -> list[str]:
    """Format a result as lines for the user; none on ranks other than 0."""
    if result.rank:
        return []
    if result.scores is None:
        return [f"{result.path}: stopped at step {result.step} of {result.steps}; the same command resumes the run"]
    early = f" of {result.steps}, without improvement at the end" if result.step < result.steps else ""
    lines = [f"{result.path}: {result.step} steps{early}; weights in {result.path / WEIGHTS}"]
    for split, scores in result.scores.items():
        lines.append(f"{split}: {scores['images']} images, {_format_scores(scores)}")
        lines += [f"{split}: {scores['remark']}"] if "remark" in scores else []
    if result.chosen == 0:
        lines[0] += " (the weights before the first step: no later ones were better on the validation images)"
    elif result.chosen is not None:
        lines[0] += f" (from step {result.chosen}, selected on the validation images: expect a little less on other images)"
    return lines


def _format_scores(scores: dict[str, Any]) -> str:
    if "top1" not in scores:
        values = {"mAP": scores["map"], "macro F1": scores.get("macro_f1")}
        return ", ".join(f"{name} {'undefined' if value is None else f'{value:.2f} %'}" for name, value in values.items())
    error, top5 = 100 - scores["top1"], scores["top5"]
    return f"top-1 {scores['top1']:.2f} % (error {error:.2f} %)" + (f", top-5 {top5:.2f} %" if top5 < 100 else "")
