"""The training loop, from its first step or any other to the last."""

import time
from contextlib import nullcontext

import torch

from densefeat.base import Interrupted, StopRequest
from densefeat.errors import DensefeatError
from densefeat.training.checkpoints import save_checkpoint
from densefeat.training.data import Split, TrainingData
from densefeat.training.device_data import Part
from densefeat.training.losses import Loss, Mixing, loss_of, mixing_of
from densefeat.training.progress import Progress
from densefeat.training.run_folder import RunFolder
from densefeat.training.scores import AnyScores, score, score_labels
from densefeat.training.state import State
from densefeat.training.watch import DivergedError, Watch, describe

_POLL_GPU = 10  # steps between looks at the device: each one waits for it
_HITS = {"single": "top1", "multi": "labels_right"}  # what the hits of a task's loss are called, per cent


def fit(state: State, data: TrainingData, folder: RunFolder, stop: StopRequest, progress: Progress, last: int) -> None:
    """Run the steps from ``state.step`` to ``last``.

    Evaluates, notes and saves on the way; returns early where the recipe's patience is at its end. Raises Interrupted, after a
    checkpoint, where a signal asked to stop; DivergedError with the step where the loss was not finite, or far above that of
    guessing.
    """
    recipe, per_epoch = state.recipe, data.sampler.steps_per_epoch
    eval_every = max(1, round(recipe.eval_epochs * per_epoch))
    kept_steps = [eval_every] if recipe.checkpoint_steps is None else [eval_every, recipe.checkpoint_steps]
    poll_every = _POLL_GPU if state.world.device.type == "cuda" else 1
    classes = len(data.labelled.classes)
    loss = loss_of(recipe, data.task, data.train_labels(), classes, state.world.device)
    mixing = mixing_of(recipe, data.task, classes)
    watch = Watch(state.model, loss.guess, gradients=not state.scaler.is_enabled())
    clock = Clock(state.seconds, state.step)
    told = len(data.failures)
    state.set_mode()

    for parts in data.batches(state.step, last):
        if state.step and state.step % eval_every == 0:  # before a step: a run that goes on from here evaluates, too
            evaluate(state, data, folder, progress)
            if state.ended:
                return
            state.set_mode()
            clock.begin_lap(state.step)
        elif state.step == state.head_steps:
            state.set_mode()

        lr = state.set_lr()
        watch.note(state.step, backward(state, parts, loss, mixing))
        if recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad)
        done = state.step + 1
        keep = done == last or any(done % steps == 0 for steps in kept_steps)
        asked = 0
        if keep or state.step % poll_every == 0:  # before the weights are touched, or on a GPU at least before they are kept
            asked, due = _poll(state, watch, stop, clock, data)
            keep = keep or due or asked > 0
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            state.ema.update(state.model, done)

        state.step, state.seconds = done, clock.seconds
        if done % recipe.log_steps == 0:
            _note_training(state, data, folder, clock, lr)
            if (count := len(data.unread())) > told:
                told = count
                progress.say(f"step {done}: {told} images could not be read and count nowhere{_first_unread(data)}")
        progress.advance(recipe.batch_size, done / per_epoch, state.sums)
        if keep:
            save(state, folder)
            clock.saved()
        if asked:
            raise Interrupted(f"stopped after step {done}; the same command goes on from there", 128 + asked)


def backward(state: State, parts: list[Part], loss: Loss, mixing: Mixing | None = None) -> torch.Tensor:
    """Gradients of the mean loss over the whole batch, of all ranks; returns this rank's own mean loss.

    An image without a label (one that could not be read) adds nothing.
    """
    recipe = state.recipe
    state.optimizer.zero_grad()
    own = torch.zeros((), device=state.world.device)
    for number, (x, y) in enumerate(parts, 1):
        targets = y
        if mixing is not None:
            x, targets = mixing((x, y), state.step, state.world.rank * len(parts) + number)
        alone = number < len(parts) and state.world.size > 1
        with state.network.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with state.autocast():
                logits = state.network(state.formatted(x))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            total = loss(logits, targets)
            # DistributedDataParallel takes the mean over ranks: of sums, it is the mean over the batch
            state.scaler.scale(total * (state.world.size / recipe.batch_size)).backward()
        own = own + total.detach() * (state.world.size / recipe.batch_size)
        state.sums += torch.stack([total.detach().double(), loss.hits(logits.detach(), y).double(), loss.count(y).double()])
    if state.scaler.is_enabled():
        state.scaler.unscale_(state.optimizer)
    return own


def _poll(state: State, watch: Watch, stop: StopRequest, clock: "Clock", data: TrainingData) -> tuple[int, bool]:
    """What all ranks agree on: the signal that asks to stop (0: none), and whether a checkpoint is due.

    Raises DivergedError on all of them, with the report of the first that saw it.
    """
    report = watch.look()
    due = state.world.first and clock.since_saved > 60 * state.recipe.checkpoint_minutes
    asked, saving, bad = state.world.largest([float(stop.signal or 0), float(due), float(report is not None)])
    if bad:
        first = min((seen for seen in state.world.everyone(report) if seen), key=lambda seen: seen["step"])
        raise DivergedError(describe(first), first | {"keys": data.keys(first["step"])})
    return int(asked), bool(saving)


def _note_training(state: State, data: TrainingData, folder: RunFolder, clock: "Clock", lr: float) -> None:
    """Means since the last line, over all ranks; DensefeatError where no image at all could be read."""
    loss, hits, count = state.world.total(state.sums).tolist()
    state.sums.zero_()
    if not count:
        raise DensefeatError(f"none of the images of the last {state.recipe.log_steps} steps can be read{_first_unread(data)}")
    if state.world.first:
        folder.note(
            "train",
            state.step,
            epoch=round(state.step / data.sampler.steps_per_epoch, 4),
            loss=round(loss / count, 5),
            **{_HITS[data.task]: round(100 * hits / count, 3)},
            lr=lr,
            images_per_second=round(state.recipe.batch_size * clock.lap(state.step), 1),
            seconds=round(clock.seconds, 1),
            unread=len(data.unread()),
        )


def _first_unread(data: TrainingData) -> str:
    """Key and reason of one, on this rank; nothing where there is none."""
    return "".join(f", the first: {key}: {reason}" for key, reason in data.unread()[:1])


def evaluate(state: State, data: TrainingData, folder: RunFolder, progress: Progress) -> AnyScores:
    """On the validation images; weights better than before (or, with keep: last, any) become the run's."""
    state.world.same_buffers(state.evaluated)
    scores = judge(state, data.val, data)
    if not scores.images:
        raise DensefeatError(f"none of the validation images can be read{_first_unread(data)}")
    better = scores.main > state.best
    state.best = max(state.best, scores.main)
    state.stale = 0 if better else state.stale + 1
    if better or state.recipe.keep == "last":
        state.kept_step = state.step
    if state.world.first:
        epoch = round(state.step / data.sampler.steps_per_epoch, 4)
        folder.note("val", state.step, epoch=epoch, **scores.to_json(), best=round(state.best, 4))
        progress.say(f"epoch {epoch:g}: val {scores.told()}")
        if better or state.recipe.keep == "last":
            folder.export(state.evaluated, data.preprocessing, data.labelled.classes, data.task)
        folder.draw()
    return scores


def judge(state: State, split: Split, data: TrainingData) -> AnyScores:
    """The weights that are kept, on a split, in the recipe's arithmetic."""
    batches = ((state.formatted(x), y) for x, y in split.batches())
    if data.task == "multi":
        return score_labels(state.evaluated, batches, data.labelled.classes, state.world, state.autocast())
    return score(state.evaluated, batches, len(data.labelled.classes), state.world, state.autocast())


def save(state: State, folder: RunFolder) -> None:
    """A checkpoint, by rank 0, of what all ranks contribute."""
    content = state.state_dict()
    if state.world.first:
        save_checkpoint(folder.checkpoints, content)
    state.world.wait()


class Clock:
    """Seconds of training, earlier runs counted, since the last checkpoint, and of the steps since a lap began."""

    def __init__(self, before: float, step: int) -> None:
        self.start = time.monotonic() - before
        self.last_save = time.monotonic()
        self.begin_lap(step)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def since_saved(self) -> float:
        return time.monotonic() - self.last_save

    def saved(self) -> None:
        self.last_save = time.monotonic()

    def begin_lap(self, step: int) -> None:
        self.lap_start, self.lap_step = time.monotonic(), step

    def lap(self, step: int) -> float:
        """Steps per second of the lap that ends here; the next one begins."""
        rate = (step - self.lap_step) / (time.monotonic() - self.lap_start)
        self.begin_lap(step)
        return rate
