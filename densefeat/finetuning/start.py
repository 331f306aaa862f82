"""Where fine-tuning starts: the weights' own preprocessing, and a head that is fitted before the first step."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from densefeat.base import Interrupted, StopRequest
from densefeat.errors import UsageError
from densefeat.finetuning.recipe import FineTuning
from densefeat.images import Preprocessing
from densefeat.labels import Targets, held_out
from densefeat.probe import NEVER, Linear, fit
from densefeat.training import Progress, Split, State, TrainingData

_MOST = 20_000  # images that a head is fitted to
_CHOSEN_ON = 0.1  # of them


def own_preprocessing(recipe: FineTuning, backbone: nn.Module) -> Preprocessing:
    """The weights' own, but for what the recipe asks."""
    own = Preprocessing.of(backbone, recipe.image_size)
    return own if recipe.crop_pct is None else replace(own, crop_pct=recipe.crop_pct)


def start_from_probe(state: State, data: TrainingData, stop: StopRequest, progress: Progress) -> str:
    """Fit the linear head to the training images' features by logistic regression; returns what to tell of it.

    At most ``MOST`` images, drawn by the seed; C as the protocol ``logreg`` chooses it, on a tenth of them. All ranks then have
    the same head. Fine-tuning that starts here distorts features less (arXiv 2202.10054). Raises Interrupted.
    """
    head = state.model.get_classifier()  # type: ignore[operator]
    told: str | None = None
    if state.world.first:
        progress.doing("a probe to start from")
        told = _fit_head(head, state, data, stop)
    state.world.same([head.weight, head.bias])
    if state.ema is not None:
        state.ema.set(state.model)
    return state.world.tell(told) or ""


def _fit_head(head: nn.Module, state: State, data: TrainingData, stop: StopRequest) -> str:
    """UsageError for a classifier that is not linear in the pooled features."""
    targets, positions = _drawn(state, data)
    if not _enough(targets, val := held_out(targets, _CHOSEN_ON, state.recipe.seed)):
        return "too few images for a probe: the head starts at random"
    features, rows = _features_of(state, Split(data.images, positions), stop)
    targets, val = targets.take(rows), val[rows]
    if not _enough(targets, val):
        return "too few images can be read for a probe: the head starts at random"
    fitted = fit("logreg", features, targets, val)
    assert isinstance(fitted.head, Linear)
    weight, bias = torch.from_numpy(fitted.head.weight), torch.from_numpy(_bounded(fitted.head.bias, len(targets)))
    if weight.numel() != head.weight.numel():  # type: ignore[operator]
        raise UsageError(f"{state.recipe.model!r}: its classifier reads no pooled features: give head_start=random")
    with torch.no_grad():
        head.weight.copy_(weight.view_as(head.weight))  # type: ignore[arg-type, operator]
        head.bias.copy_(bias)  # type: ignore[operator]
    return f"the head starts as a logistic regression on {len(targets):,} images, C {fitted.chosen['C']:.3g}"


def _drawn(state: State, data: TrainingData) -> tuple[Targets, np.ndarray]:
    """Training images to fit to, of every class about the same share: their targets and positions."""
    positions, labels = data.sampler.positions, data.train_labels()
    values = labels > 0 if data.task == "multi" else labels
    targets = Targets(data.task, tuple(data.labelled.classes), values)
    if len(positions) > _MOST:
        kept = held_out(targets, _MOST / len(positions), state.recipe.seed)
        targets, positions = targets.take(kept), positions[kept]
    return targets, positions


def _enough(targets: Targets, val: np.ndarray) -> bool:
    """Whether there is something to tell apart in the rows that are fitted to, and something to choose by."""
    fitting = targets.values[~val]
    return bool(val.any()) and len(fitting) > 1 and bool((fitting != fitting[0]).any())


def _bounded(bias: np.ndarray, rows: int) -> np.ndarray:
    """A class without rows is unlikely, rather than impossible: it may turn up in training."""
    fitted = np.abs(bias) < -NEVER
    limit = max(np.log(2 * rows), np.abs(bias[fitted]).max(initial=0))
    return bias.clip(-limit, limit).astype(np.float32)


def _features_of(state: State, split: Split, stop: StopRequest) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier reads, float32 ``(n, D)``, of the images that can be read, and which of the split's these are."""
    model, rows, there = state.model.eval(), [], []
    with torch.inference_mode():
        for x, y in split.batches():
            if stop.signal:
                raise Interrupted("stopped before the first step; the same command begins again", 128 + stop.signal)
            readable = (y >= 0) if y.ndim == 1 else (y[:, 0] >= 0)
            there.append(readable.cpu().numpy())
            with state.autocast():
                maps = model.forward_features(state.formatted(x[readable]))  # type: ignore[operator]
                pooled = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
            rows.append(pooled.flatten(1).float().cpu().numpy())
    return np.concatenate(rows), np.concatenate(there)
