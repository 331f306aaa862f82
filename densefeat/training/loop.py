"""The training loop, from any step to any later one."""

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.optim.swa_utils import update_bn

from densefeat.base import Interrupted, StopRequest
from densefeat.errors import DensefeatError
from densefeat.training.checkpoints import save_checkpoint
from densefeat.training.data import Split, TrainingData
from densefeat.training.device_data import MicroBatch
from densefeat.training.losses import Loss
from densefeat.training.progress import Clock, Progress
from densefeat.training.run_folder import RunFolder
from densefeat.training.scores import AnyScores, score, score_labels
from densefeat.training.state import State
from densefeat.training.watch import DivergedError, Watch, format_divergence

_POLL_GPU = 10  # steps between polls on a GPU: each waits for the device
_SETTLING_IMAGES = 8192  # of all ranks; of fewer training images all
_HITS = {"single": "top1", "multi": "labels_right"}  # name in metrics.jsonl of the hits of a loss, in per cent


def fit(
    state: State, data: TrainingData, folder: RunFolder, stop: StopRequest, progress: Progress, last: int, deadline: float
) -> bool:
    """Run the steps from ``state.step`` to ``last``, with evaluations, metrics and checkpoints.

    ``deadline``: seconds of ``time.monotonic`` after which it ends with a checkpoint; returns whether it has. Also returns
    early when the patience is exhausted. Raises Interrupted, after a checkpoint, when a signal requested a stop;
    DivergedError when the loss is not finite, or far above the chance level.
    """
    recipe, per_epoch = state.recipe, data.sampler.steps_per_epoch
    eval_every = max(1, round(recipe.eval_epochs * per_epoch))
    save_every = [eval_every] if recipe.checkpoint_steps is None else [eval_every, recipe.checkpoint_steps]
    poll_every = _POLL_GPU if state.world.device.type == "cuda" else 1
    loss, mixing = state.setup.make_loss(data, state.world.device), state.setup.make_mixing(data)
    watch = Watch(state.model, loss.chance_level, check_gradients=not state.scaler.is_enabled())
    clock = Clock(state.seconds, state.step)
    known_failures = len(data.failures)
    state.set_mode()

    for micro_batches in data.batches(state.step, last):
        if state.step and state.step % eval_every == 0:  # before the step, so that a resumed run evaluates, too
            validate(state, data, folder, progress)
            if state.patience_exhausted:
                return False
            state.set_mode()
            clock.start_lap(state.step)
        elif state.step == state.head_steps:
            state.set_mode()

        lr = state.set_lr()
        watch.record(state.step, _backward(state, micro_batches, loss, mixing))
        if recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad)
        step = state.step + 1
        save = step == last or any(step % steps == 0 for steps in save_every)
        signal, late = 0, False
        if save or state.step % poll_every == 0:  # divergence must be found before its weights are saved
            signal, save_is_due, late = _poll(state, watch, stop, clock, data, deadline)
            save = save or save_is_due or late or signal > 0
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            state.ema.update(state.model, step)

        state.step, state.seconds = step, clock.seconds
        if step % recipe.log_steps == 0:
            _log_training(state, data, folder, clock, lr)
            if (count := len(data.list_failures())) > known_failures:
                known_failures = count
                progress.print(f"step {step}: {count} images could not be read and count nowhere{_first_failure(data)}")
        progress.advance(recipe.batch_size, step / per_epoch, state.sums)
        if save:
            save_state(state, folder)
            clock.record_save()
        if signal:
            raise Interrupted(f"stopped after step {step}; the same command resumes the run", 128 + signal)
        if late:
            return step < last
    return False


def _backward(
    state: State,
    micro_batches: list[MicroBatch],
    loss: Loss,
    mixing: Callable[[MicroBatch, int, int], MicroBatch] | None = None,
) -> torch.Tensor:
    """Compute the gradients of the mean loss over the batch of all ranks; return this rank's mean loss.

    An image without a label (because it could not be read) adds nothing.
    """
    recipe = state.recipe
    state.optimizer.zero_grad()
    rank_loss = torch.zeros((), device=state.world.device)
    for number, (x, y) in enumerate(micro_batches, 1):
        x, targets = state.sizes.resize(x, state.step), y
        if mixing is not None:
            x, targets = mixing((x, y), state.step, state.world.rank * len(micro_batches) + number)
        more_to_come = number < len(micro_batches) and state.world.size > 1
        with state.network.no_sync() if more_to_come else nullcontext():  # type: ignore[operator]
            with state.autocast():
                logits = state.network(state.to_layout(x))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            total = loss(logits, targets)
            # DistributedDataParallel averages over ranks, so the sum is scaled to become the mean over the batch
            state.scaler.scale(total * (state.world.size / recipe.batch_size)).backward()
        rank_loss = rank_loss + total.detach() * (state.world.size / recipe.batch_size)
        state.sums += torch.stack([total.detach().double(), loss.hits(logits.detach(), y).double(), loss.count(y).double()])
    if state.scaler.is_enabled():
        state.scaler.unscale_(state.optimizer)
    return rank_loss


def _poll(
    state: State, watch: Watch, stop: StopRequest, clock: Clock, data: TrainingData, deadline: float
) -> tuple[int, bool, bool]:
    """Agree over all ranks on the signal that requests a stop (0: none), whether a checkpoint is due, and the deadline past.

    Raises DivergedError on all ranks, with the report of the rank that diverged first.
    """
    report = watch.find_divergence()
    save_is_due = state.world.first and clock.seconds_since_save > 60 * state.recipe.checkpoint_minutes
    values = [float(stop.signal or 0), save_is_due, time.monotonic() >= deadline, report is not None]
    signal, save, late, diverged = state.world.max(values)
    if diverged:
        reports = [one for one in state.world.gather_objects(report) if one]
        first = min(reports, key=lambda one: one["step"])
        raise DivergedError(format_divergence(first), first | {"keys": data.keys(first["step"])})
    return int(signal), bool(save), bool(late)


def _log_training(state: State, data: TrainingData, folder: RunFolder, clock: Clock, lr: float) -> None:
    """Write the means since the last line, over all ranks; DensefeatError if no image at all could be read."""
    loss, hits, count = state.world.sum(state.sums).tolist()
    state.sums.zero_()
    if not count:
        raise DensefeatError(
            f"none of the images of the last {state.recipe.log_steps} steps can be read{_first_failure(data)}"
        )  # fmt: skip
    if state.world.first:
        folder.log(
            "train",
            state.step,
            epoch=round(state.step / data.sampler.steps_per_epoch, 4),
            loss=round(loss / count, 5),
            **{_HITS[data.task]: round(100 * hits / count, 3)},
            lr=lr,
            precision=state.precision,
            images_per_second=round(state.recipe.batch_size * clock.end_lap(state.step), 1),
            seconds=round(clock.seconds, 1),
            unread=len(data.list_failures()),
        )


def _first_failure(data: TrainingData) -> str:
    """Format the first image that this rank could not read, if any, as the end of a message."""
    return "".join(f", the first: {key}: {reason}" for key, reason in data.list_failures()[:1])


def validate(state: State, data: TrainingData, folder: RunFolder, progress: Progress) -> AnyScores:
    """Score the validation images; weights that are better than before (or, with keep: last, any) go to the run folder."""
    if state.sizes.several:
        _settle_norms(state, data)
    state.world.broadcast_buffers(state.eval_model)
    scores = score_split(state, data.val, data)
    if not scores.images:
        raise DensefeatError(f"none of the validation images can be read{_first_failure(data)}")
    better = scores.main > state.best
    state.best = max(state.best, scores.main)
    state.stale = 0 if better else state.stale + 1
    keep = better or state.recipe.keep == "last"
    if keep:
        state.kept_step = state.step
    if state.world.first:
        epoch = round(state.step / data.sampler.steps_per_epoch, 4)
        folder.log("val", state.step, epoch=epoch, **scores.to_json(), best=round(state.best, 4))
        progress.print(f"epoch {epoch:g}: val {scores.summary()}")
        if keep:
            folder.export(state.eval_model, data.preprocessing, data.labelled.classes, data.task)
        folder.draw_curves()
    return scores


def _settle_norms(state: State, data: TrainingData) -> None:
    """Compute the BatchNorm statistics of the network that is evaluated anew, from training images of the whole size.

    Its running means still hold those of smaller images.
    """
    steps = min(data.sampler.steps_per_epoch, -(-_SETTLING_IMAGES // data.sampler.batch_size))
    batches = (state.to_layout(x) for batch in data.batches(state.step, state.step + steps) for x, _ in batch)
    with state.autocast():
        update_bn(batches, state.eval_model)


def score_split(state: State, split: Split, data: TrainingData) -> AnyScores:
    """Score the network on a split, in the precision of the run's steps."""
    batches = ((state.to_layout(x), y) for x, y in split.batches())
    if data.task == "multi":
        return score_labels(state.eval_model, batches, data.labelled.classes, state.world, state.autocast())
    return score(state.eval_model, batches, len(data.labelled.classes), state.world, state.autocast())


def save_state(state: State, folder: RunFolder) -> None:
    """Write a checkpoint. All ranks must call this together."""
    content = state.state_dict()
    if state.world.first:
        save_checkpoint(folder.checkpoints, content)
    state.world.wait_for_all()
