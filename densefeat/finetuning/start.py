"""The initial weights of a linear head: logistic regression on the training images' features."""

import numpy as np
import torch
from torch import nn

from densefeat.base import Interrupted, StopRequest
from densefeat.errors import UsageError
from densefeat.labels import Targets, hold_out
from densefeat.probing import NEVER, LinearHead, fit_head
from densefeat.training import Progress, Split, State, TrainingData

_MAX_IMAGES = 20_000  # to fit the head to
_VAL_SHARE = 0.1  # of these images, to select C by


def start_from_probe(state: State, data: TrainingData, stop: StopRequest, progress: Progress) -> str:
    """Fit the linear head to the training images' features; return a line that describes the fit.

    Uses at most ``_MAX_IMAGES`` images; C is selected as in the protocol ``logreg``, on a tenth of them. Rank 0 fits, and all
    ranks then have its head. Fine-tuning from such a head distorts features less (arXiv 2202.10054). Raises Interrupted.
    """
    head = state.model.get_classifier()  # type: ignore[operator]
    summary: str | None = None
    if state.world.first:
        progress.describe("fitting a probe")
        summary = _fit_head(head, state, data, stop)
    state.world.broadcast_tensors([head.weight, head.bias])
    if state.ema is not None:
        state.ema.set(state.model)
    return state.world.broadcast(summary) or ""


def _fit_head(head: nn.Module, state: State, data: TrainingData, stop: StopRequest) -> str:
    """Fit on this rank; UsageError for a classifier that is not linear in the pooled features."""
    targets, positions = _select_images(state, data)
    if not _can_fit(targets, val := hold_out(targets, _VAL_SHARE, state.recipe.seed)):
        return "too few images for a probe: the head starts at random"
    features, rows = _extract_features(state, Split(data.images, positions), stop)
    targets, val = targets.take(rows), val[rows]
    if not _can_fit(targets, val):
        return "too few images can be read for a probe: the head starts at random"
    fitted = fit_head("logreg", features, targets, val)
    assert isinstance(fitted.head, LinearHead)
    weight, bias = torch.from_numpy(fitted.head.weight), torch.from_numpy(_limit_bias(fitted.head.bias, len(targets)))
    if weight.numel() != head.weight.numel():  # type: ignore[operator]
        raise UsageError(f"{state.recipe.model!r}: its classifier does not read pooled features: give head_start=random")
    with torch.no_grad():
        head.weight.copy_(weight.view_as(head.weight))  # type: ignore[arg-type, operator]
        head.bias.copy_(bias)  # type: ignore[operator]
    return f"the head starts as a logistic regression on {len(targets):,} images, C {fitted.chosen['C']:.3g}"


def _select_images(state: State, data: TrainingData) -> tuple[Targets, np.ndarray]:
    """Select training images, about the same share of every class; return their targets and positions."""
    positions, labels = data.sampler.positions, data.train_labels()
    values = labels > 0 if data.task == "multi" else labels
    targets = Targets(data.task, tuple(data.labelled.classes), values)
    if len(positions) > _MAX_IMAGES:
        selected = hold_out(targets, _MAX_IMAGES / len(positions), state.recipe.seed)
        targets, positions = targets.take(selected), positions[selected]
    return targets, positions


def _can_fit(targets: Targets, val: np.ndarray) -> bool:
    """Return whether the rows to fit to have at least two classes, and there are rows to select C by."""
    fitting = targets.values[~val]
    return bool(val.any()) and len(fitting) > 1 and bool((fitting != fitting[0]).any())


def _limit_bias(bias: np.ndarray, rows: int) -> np.ndarray:
    """Make classes without rows unlikely instead of impossible: they may occur in training."""
    fitted = np.abs(bias) < -NEVER
    limit = max(np.log(2 * rows), np.abs(bias[fitted]).max(initial=0))
    return bias.clip(-limit, limit).astype(np.float32)


def _extract_features(state: State, split: Split, stop: StopRequest) -> tuple[np.ndarray, np.ndarray]:
    """Compute the classifier's input for the images that can be read, float32 ``(n, D)``.

    The second result, bool ``(N,)``, marks the images of the split that can be read.
    """
    model, rows, masks = state.model.eval(), [], []
    with torch.inference_mode():
        for x, y in split.batches():
            if stop.signal:
                raise Interrupted("stopped before the first step; the same command starts over", 128 + stop.signal)
            readable = (y >= 0) if y.ndim == 1 else (y[:, 0] >= 0)
            masks.append(readable.cpu().numpy())
            with state.autocast():
                maps = model.forward_features(state.to_layout(x[readable]))  # type: ignore[operator]
                pooled = model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
            rows.append(pooled.flatten(1).float().cpu().numpy())
    return np.concatenate(rows), np.concatenate(masks)
