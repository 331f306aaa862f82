"""A run: from a recipe to a folder with weights, going on where an earlier call stopped."""

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from densefeat.errors import DensefeatError, OutputError
from densefeat.extract.interrupts import StopRequest, stop_on_signal
from densefeat.extract.progress import progress_bar
from densefeat.store.lock import locked
from densefeat.training.checkpoints import load_checkpoint, newest_whole
from densefeat.training.data import TrainingData, open_data
from densefeat.training.loop import evaluate, fit, judge, save
from densefeat.training.progress import Progress, training_progress
from densefeat.training.recipe import Recipe
from densefeat.training.run_folder import RESULTS, WEIGHTS, RunFolder
from densefeat.training.state import State, build
from densefeat.training.watch import DivergedError
from densefeat.training.world import World, joined

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last: what schedulers send before they preempt


@dataclass(frozen=True)
class Trained:
    """``step`` of ``steps``; ``scores``: of the kept weights, once the run is complete: ``{"val": …, "test": …}``."""

    path: Path
    rank: int
    step: int
    steps: int
    scores: dict[str, dict[str, Any]] | None


def train(recipe: Recipe, out: str | Path, device: str | None = None, steps: int | None = None) -> Trained:
    """Train as ``recipe`` says, in the folder ``out``; the same call goes on from the newest checkpoint there.

    Alone, or in each of the processes that torchrun started (``out`` is then a folder that all machines see).

    Args:
        device: ``"cpu"``, ``"cuda"``, …; None for a GPU where there is one.
        steps: Stop, with a checkpoint, after so many; None: run to the end.

    Raises:
        UsageError: Data or network that do not exist or do not fit; ``out`` holds a run of another recipe.
        OutputError: ``out`` cannot be written, or is being written to.
        DivergedError: The loss is not finite, or far above that of guessing; ``divergence.json`` in ``out`` says more.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 asked to stop; there is a checkpoint.
    """
    folder = RunFolder(Path(out))
    with ExitStack() as stack:
        stack.enter_context(algorithms(recipe.deterministic))
        world = stack.enter_context(joined(device))
        if world.first:
            folder.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder.path / ".lock"))
            folder.check(recipe)
        world.wait()
        if not folder.path.is_dir():
            raise OutputError(f"output {str(out)!r}: rank {world.rank} does not see this folder, which all ranks share")
        with progress_bar("decoding", None, show=world.first) as advance:
            data = open_data(recipe, world, advance)
        stop = stack.enter_context(stop_on_signal(*SIGNALS))  # from here on there is something to keep
        return run(recipe, folder, data, world, stop, steps)


def run(recipe: Recipe, folder: RunFolder, data: TrainingData, world: World, stop: StopRequest, steps: int | None) -> Trained:
    """Build, resume, fit; after divergence, again from the last checkpoint at half the rate, as often as the recipe allows."""
    total = max(1, round(recipe.epochs * data.sampler.steps_per_epoch))
    state = build(recipe, len(data.labelled.classes), data.sampler.steps_per_epoch, total, world)
    state.images = data.fingerprint()
    if len(set(world.everyone(state.images))) > 1:
        raise DensefeatError("the ranks do not see the same training images: check that all can read them")
    _, messages = resume(state, folder)
    if state.step == total and (scores := folder.results()) is not None:
        return Trained(folder.path, world.rank, total, total, scores)
    last = total if steps is None else min(total, state.step + steps)
    with ExitStack() as stack:
        done, images = state.step * recipe.batch_size, total * recipe.batch_size
        progress = stack.enter_context(training_progress(done, images, world.first))
        for message in [*messages, *unreadable(data), *not_drawn()]:
            progress.say(message)
        if world.first:
            stack.callback(folder.close)
            folder.begin(recipe, state.step)
        if recipe.retreats and not state.step:
            save(state, folder)  # to go back to
        tried: set[str] = set()
        while state.step < last:
            try:
                fit(state, data, folder, stop, progress, last)
            except DivergedError as error:
                if world.first:
                    folder.write("divergence.json", error.report)
                if state.retreats >= recipe.retreats or not retreat(state, folder, tried):
                    raise
                progress.say(f"{error}: back to step {state.step} at {state.lr_scale:g} of the learning rate")
        scores = finish(state, data, folder, progress) if state.step == total else None
    return Trained(folder.path, world.rank, state.step, total, scores)


def resume(state: State, folder: RunFolder, tried: Collection[str] = ()) -> tuple[str | None, list[str]]:
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


def unreadable(data: TrainingData) -> list[str]:
    """One line on images that could not be decoded, if any."""
    if not data.failures:
        return []
    key, reason = data.failures[0]
    return [f"{len(data.failures)} images cannot be read and are left out, the first: {key}: {reason}"]


def not_drawn() -> list[str]:
    """One line on what the run folder will lack, if anything."""
    if find_spec("matplotlib") and find_spec("tensorboard"):
        return []
    return ["curves.png and TensorBoard's events need: pip install 'densefeat[train]'"]


def retreat(state: State, folder: RunFolder, tried: set[str]) -> bool:
    """To the last good checkpoint, at half the rate of before; False where there is none.

    One that led to divergence a second time was not good.
    """
    retreats, scale = state.retreats + 1, state.lr_scale / 2
    name, _ = resume(state, folder, tried)
    if name is None:
        return False
    tried.add(name)
    state.retreats, state.lr_scale = retreats, scale
    if state.world.first:
        folder.resume(state.step)
    return True


@contextmanager
def algorithms(deterministic: bool) -> Iterator[None]:
    """torch's deterministic ones, where asked for, for a while."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def finish(state: State, data: TrainingData, folder: RunFolder, progress: Progress) -> dict[str, dict[str, Any]]:
    """The last evaluation, and what it did not see of the kept weights: of earlier ones both, and the test images."""
    scores = {"val": evaluate(state, data, folder, progress).to_json()}
    splits = {"test": data.test} if data.test else {}
    if state.recipe.keep == "best":
        state.world.wait()
        state.evaluated.load_state_dict(load_file(folder.path / WEIGHTS))
        splits = {"val": data.val} | splits
    scores |= {name: judge(state, split, len(data.labelled.classes)).to_json() for name, split in splits.items()}
    if state.world.first:
        folder.write(RESULTS, scores)
    return scores


def report(result: Trained) -> list[str]:
    """What a person wants to know at the end, in lines; none from ranks other than the first."""
    if result.rank:
        return []
    if result.scores is None:
        return [f"{result.path}: stopped at step {result.step} of {result.steps}; the same command goes on from there"]
    lines = [f"{result.path}: {result.steps} steps; weights in {result.path / WEIGHTS}"]
    for split, scores in result.scores.items():
        error = 100 - scores["top1"]
        accuracy = f"top-1 {scores['top1']:.2f} % (error {error:.2f} %), top-5 {scores['top5']:.2f} %"
        lines.append(f"{split}: {scores['images']} images, {accuracy}")
    return lines
