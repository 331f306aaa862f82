"""A run: from a recipe to a folder with weights, going on where an earlier call stopped."""

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from densefeat.base import PREEMPTION_SIGNALS, StopRequest, hold_lock, output_errors, progress_bar, stop_on_signal
from densefeat.errors import DensefeatError, OutputError, UsageError
from densefeat.finetuning import AnyRecipe, FineTuning, open_own_data, own_preprocessing, start_from_probe
from densefeat.loading import WEIGHTS, create_model
from densefeat.training.checkpoints import load_checkpoint, newest_whole
from densefeat.training.data import TrainingData, open_data
from densefeat.training.loop import evaluate, fit, judge, save
from densefeat.training.progress import Progress, training_progress
from densefeat.training.run_folder import RESULTS, RunFolder
from densefeat.training.state import State, build
from densefeat.training.watch import DivergedError
from densefeat.training.world import World, join_world

_MOST_TOLD = 1000  # images that could not be read, by name


@dataclass(frozen=True)
class Trained:
    """``step`` of ``steps``; ``scores``: of the kept weights, once the run is complete: ``{"val": …, "test": …}``.

    ``chosen``: the step of the weights, where they are the best on the validation images.
    """

    path: Path
    rank: int
    step: int
    steps: int
    scores: dict[str, dict[str, Any]] | None
    chosen: int | None = None


def train(recipe: AnyRecipe, out: str | Path, device: str | None = None, steps: int | None = None) -> Trained:
    """Train or fine-tune as ``recipe`` says, in the folder ``out``; the same call goes on from the newest checkpoint there.

    Alone, or in each of the processes that torchrun started (``out`` is then a folder that all machines see).

    Args:
        device: ``"cpu"``, ``"cuda"``, …; None for a GPU where there is one.
        steps: Stop, with a checkpoint, after so many; None: run to the end.

    Raises:
        UsageError: Data or network that do not exist or do not fit; ``out`` holds a run of another recipe.
        WeightsError: There are no weights to fine-tune.
        OutputError: ``out`` cannot be written, or is being written to.
        DivergedError: The loss is not finite, or far above that of guessing; ``divergence.json`` in ``out`` says more.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 asked to stop; there is a checkpoint.
    """
    folder = RunFolder(Path(out))
    with ExitStack() as stack:
        stack.enter_context(_algorithms(recipe.deterministic))
        world = stack.enter_context(join_world(device))
        if isinstance(recipe, FineTuning):
            _check_apart(folder.path, recipe)
        if world.first:
            with output_errors(folder.path):
                folder.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(folder.path / ".lock"))
            folder.check(recipe)
        world.wait()
        if not folder.path.is_dir():
            raise OutputError(f"output {str(out)!r}: rank {world.rank} does not see this folder, which all ranks share")
        backbone: nn.Module | None = None
        with progress_bar("decoding", None, show=world.first) as advance:
            if isinstance(recipe, FineTuning):
                backbone, _ = create_model(recipe.model, recipe.weights)
                data = open_own_data(recipe, own_preprocessing(recipe, backbone), world, advance)
            else:
                data = open_data(recipe, world, advance)
        stop = stack.enter_context(stop_on_signal(*PREEMPTION_SIGNALS))  # from here on there is something to keep
        return _run(recipe, folder, data, world, stop, steps, backbone)


def _run(
    given: AnyRecipe,
    folder: RunFolder,
    data: TrainingData,
    world: World,
    stop: StopRequest,
    steps: int | None,
    backbone: nn.Module | None = None,
) -> Trained:
    """Build, resume, fit; after divergence, again from the last checkpoint at half the rate, as often as the recipe allows."""
    recipe = replace(given, batch_size=data.sampler.batch_size)  # of few images of one's own no more than there are
    per_epoch = data.sampler.steps_per_epoch
    total = max(1, round(recipe.epochs * per_epoch))
    state = build(recipe, len(data.labelled.classes), data.preprocessing.size, per_epoch, total, world, backbone)
    state.images = data.fingerprint()
    if len(set(world.everyone(state.images))) > 1:
        raise DensefeatError("the ranks do not see the same training images: check that all can read them")
    checkpoint, messages = _resume(state, folder)
    if (done := folder.results()) is not None and state.step == done.get("step", total):
        kept = done.get("kept_step") if recipe.keep == "best" else None  # the checkpoint is older than the last evaluation
        return Trained(folder.path, world.rank, state.step, total, _splits_of(done), kept)
    last = total if steps is None else min(total, state.step + steps)
    with ExitStack() as stack:
        size = recipe.batch_size
        progress = stack.enter_context(training_progress(state.step * size, total * size, world.first))
        for message in [*messages, *data.notes, *_unreadable(data), *_not_drawn()]:
            progress.say(message)
        if world.first:
            stack.callback(folder.close)
            folder.begin(given, None if checkpoint is None else state.step)
        if isinstance(recipe, FineTuning) and recipe.start == "probe" and checkpoint is None:
            progress.say(start_from_probe(state, data, stop, progress))
            evaluate(state, data, folder, progress)
        if recipe.retreats and checkpoint is None:
            save(state, folder)  # to go back to
        tried: set[str] = set()
        while state.step < last and not state.ended:
            try:
                fit(state, data, folder, stop, progress, last)
            except DivergedError as error:
                if world.first:
                    folder.write("divergence.json", error.report)
                if state.retreats >= recipe.retreats or not _retreat(state, folder, tried):
                    raise
                progress.say(f"{error}: back to step {state.step} at {state.lr_scale:g} of the learning rate")
        scores = _finish(state, data, folder, progress) if state.step == total or state.ended else None
    return Trained(folder.path, world.rank, state.step, total, scores, state.kept_step if recipe.keep == "best" else None)


def _check_apart(out: Path, recipe: FineTuning) -> None:
    """UsageError where the run would lie among its own images."""
    for place in (recipe.train, recipe.val):
        if place is not None and os.path.isdir(place) and out.resolve().is_relative_to(Path(place).resolve()):
            raise UsageError(f"output {str(out)!r} is in the folder of images {place!r}: name another --out")


def _resume(state: State, folder: RunFolder, tried: Collection[str] = ()) -> tuple[str | None, list[str]]:
    """Go on from the newest checkpoint that is whole, as rank 0 sees it; its name, and what there is to say.

    Those ``tried`` go, but for the one of step 0.
    """
    path, problems = newest_whole(folder.checkpoints, tried) if state.world.first else (None, [])
    name = state.world.tell(path.name if path else None)
    if name is not None:
        state.load_state_dict(load_checkpoint(folder.checkpoints / name))
        if state.step:
            problems.append(f"going on from step {state.step}")
    return name, problems


def _unreadable(data: TrainingData) -> list[str]:
    """One line on images that could not be decoded, if any."""
    if not data.failures:
        return []
    key, reason = data.failures[0]
    return [f"{len(data.failures)} images cannot be read and are left out, the first: {key}: {reason}"]


def _not_drawn() -> list[str]:
    """A line on each thing that the run folder will lack."""
    needed = {"matplotlib": "curves.png needs: pip install matplotlib",
              "tensorboard": "TensorBoard's events need: pip install 'densefeat[train]'"}  # fmt: skip
    return [told for package, told in needed.items() if not find_spec(package)]


def _retreat(state: State, folder: RunFolder, tried: set[str]) -> bool:
    """To the last good checkpoint, at half the rate of before; False where there is none.

    One that led to divergence a second time was not good.
    """
    retreats, scale = state.retreats + 1, state.lr_scale / 2
    name, _ = _resume(state, folder, tried)
    if name is None:
        return False
    tried.add(name)
    state.retreats, state.lr_scale = retreats, scale
    if state.world.first:
        folder.resume(state.step)
    return True


@contextmanager
def _algorithms(deterministic: bool) -> Iterator[None]:
    """torch's deterministic ones, where asked for, for a while."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _finish(state: State, data: TrainingData, folder: RunFolder, progress: Progress) -> dict[str, dict[str, Any]]:
    """The last evaluation, and what it did not see of the kept weights: of earlier ones both, and the test images."""
    scores = {} if state.ended else {"val": evaluate(state, data, folder, progress).to_json()}
    splits = {"test": data.test} if data.test else {}
    if state.recipe.keep == "best":
        state.world.wait()
        state.evaluated.load_state_dict(load_file(folder.path / WEIGHTS))
        splits = {"val": data.val} | splits
    scores |= {name: judge(state, split, data).to_json() for name, split in splits.items()}
    unread = sorted(set().union(*state.world.everyone(data.unread())))
    if unread:
        key, reason = unread[0]
        progress.say(f"{len(unread)} images could not be read and count nowhere, the first: {key}: {reason}")
    if state.world.first:
        told_of = [{"key": key, "reason": reason} for key, reason in unread[:_MOST_TOLD]]
        facts = {"step": state.step, "kept_step": state.kept_step, "unread": len(unread), "first_unread": told_of}
        folder.write(RESULTS, scores | facts)
    return scores


def _splits_of(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: scores for name, scores in results.items() if isinstance(scores, dict)}


def report(result: Trained) -> list[str]:
    """What a person wants to know at the end, in lines; none from ranks other than the first."""
    if result.rank:
        return []
    if result.scores is None:
        return [f"{result.path}: stopped at step {result.step} of {result.steps}; the same command goes on from there"]
    early = f" of {result.steps}, no better for a while" if result.step < result.steps else ""
    lines = [f"{result.path}: {result.step} steps{early}; weights in {result.path / WEIGHTS}"]
    lines += [f"{split}: {scores['images']} images, {_told(scores)}" for split, scores in result.scores.items()]
    if result.chosen == 0:
        lines[0] += " (those it started from: none of the later ones were better on the validation images)"
    elif result.chosen is not None:
        lines[0] += f" (of step {result.chosen}, the best on the validation images: other images will be told apart less well)"
    return lines


def _told(scores: dict[str, Any]) -> str:
    if "top1" not in scores:
        known = {"mAP": scores["map"], "macro F1": scores.get("macro_f1")}
        return ", ".join(f"{name} {'undefined' if value is None else f'{value:.2f} %'}" for name, value in known.items())
    error, fifth = 100 - scores["top1"], scores["top5"]
    return f"top-1 {scores['top1']:.2f} % (error {error:.2f} %)" + (f", top-5 {fifth:.2f} %" if fifth < 100 else "")
